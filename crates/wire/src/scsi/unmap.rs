//! The parameter list of UNMAP (SBC-3 5.30.2).

use super::sense::Sense;
use super::{be16, be32, be64};

/// The (LBA, count) pairs of an UNMAP parameter list.
///
/// An empty list names nothing. Descriptors cut off at the end of `list` are a
/// parameter list length error; more than `limit` an invalid field.
pub fn parse(list: &[u8], limit: usize) -> Result<impl Iterator<Item = (u64, u32)> + Clone + '_, Sense> {
    if !list.is_empty() && list.len() < 8 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let described_bytes = usize::from(be16(list, 2));
    let descriptors = list.get(8..).unwrap_or_default();
    if described_bytes > descriptors.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if described_bytes / 16 > limit {
        return Err(Sense::in_parameters(2));
    }
    Ok(descriptors[..described_bytes].chunks_exact(16).map(|d| (be64(d, 0), be32(d, 8))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_list_gives_extents_or_a_sense(list in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(extents) = parse(&list, 16) {
                prop_assert!(extents.count() <= 16);
            }
        }
    }

    #[test]
    fn descriptors_are_read_in_order() {
        let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
        for (lba, count) in [(5u64, 6u32), (7, 8)] {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&count.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        assert_eq!(parse(&list, 2).unwrap().collect::<Vec<_>>(), [(5, 6), (7, 8)]);
        assert!(parse(&list, 1).is_err());
        assert!(parse(&list[..30], 2).is_err());
    }
}
