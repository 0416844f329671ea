//! Serial number arithmetic over 32 bits (RFC 1982), as CmdSN, StatSN and DataSN use it (RFC 7143 4.2.2.1).

/// A number that wraps; "before" means less than half the circle behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SerialNumber(pub u32);

impl SerialNumber {
    /// The number `steps` further on.
    #[must_use]
    pub fn plus(self, steps: u32) -> Self {
        SerialNumber(self.0.wrapping_add(steps))
    }

    /// The number `steps` further back.
    #[must_use]
    pub fn minus(self, steps: u32) -> Self {
        SerialNumber(self.0.wrapping_sub(steps))
    }

    /// Whether this number comes before `other`. Numbers exactly half the circle apart are in no order: false.
    pub fn is_before(self, other: Self) -> bool {
        let distance = other.0.wrapping_sub(self.0);
        distance != 0 && distance < 1 << 31
    }

    /// Whether this number lies in `first..=last`.
    pub fn is_within(self, first: Self, last: Self) -> bool {
        !self.is_before(first) && !last.is_before(self)
    }
}

#[cfg(test)]
mod tests {
    use super::SerialNumber as Sn;

    #[test]
    fn order_survives_the_wrap() {
        assert!(Sn(u32::MAX).is_before(Sn(0)));
        assert!(!Sn(0).is_before(Sn(u32::MAX)));
        assert!(!Sn(7).is_before(Sn(7)));
        assert!(Sn(1).is_within(Sn(u32::MAX), Sn(3)));
        assert!(!Sn(4).is_within(Sn(u32::MAX), Sn(3)));
        assert_eq!(Sn(u32::MAX).plus(2).minus(2), Sn(u32::MAX));
    }
}
