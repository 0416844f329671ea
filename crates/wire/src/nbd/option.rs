//! What a client asks during the handshake (Option types).

use super::{Fields, Malformed, OPTION_MAGIC};

/// Bytes of an option's header; its data follows.
pub const OPTION_HEADER_BYTES: usize = 16;

/// An option's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// The number of the option, [`OptionKind::from_code`] of it names it.
    pub code: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionHeader {
    /// Reads a header. The data's length is the peer's word only: bound it before use.
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<OptionHeader, Malformed> {
        let mut fields = Fields::new(bytes);
        fields.magic_u64(OPTION_MAGIC)?;
        Ok(OptionHeader { code: fields.u32()?, data_bytes: fields.u32()? })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; OPTION_HEADER_BYTES] {
        let mut out = [0; OPTION_HEADER_BYTES];
        out[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.code.to_be_bytes());
        out[12..].copy_from_slice(&self.data_bytes.to_be_bytes());
        out
    }
}

/// The options of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptionKind {
    /// Choose an export and go, without a way to say why not.
    ExportName,
    /// End the session.
    Abort,
    /// Name every export.
    List,
    /// Withdrawn.
    PeekExport,
    /// Upgrade to TLS.
    StartTls,
    /// Tell about an export.
    Info,
    /// Tell about an export, and go.
    Go,
    /// Structured replies from now on.
    StructuredReply,
    /// Name metadata contexts.
    ListMetaContext,
    /// Select metadata contexts.
    SetMetaContext,
    /// Experimental 64-bit headers.
    ExtendedHeaders,
    /// Not in the document.
    Unknown(u32),
}

impl OptionKind {
    /// The option of this number.
    pub fn from_code(code: u32) -> OptionKind {
        match code {
            1 => OptionKind::ExportName,
            2 => OptionKind::Abort,
            3 => OptionKind::List,
            4 => OptionKind::PeekExport,
            5 => OptionKind::StartTls,
            6 => OptionKind::Info,
            7 => OptionKind::Go,
            8 => OptionKind::StructuredReply,
            9 => OptionKind::ListMetaContext,
            10 => OptionKind::SetMetaContext,
            11 => OptionKind::ExtendedHeaders,
            other => OptionKind::Unknown(other),
        }
    }

    /// The number of this option.
    pub fn code(self) -> u32 {
        match self {
            OptionKind::ExportName => 1,
            OptionKind::Abort => 2,
            OptionKind::List => 3,
            OptionKind::PeekExport => 4,
            OptionKind::StartTls => 5,
            OptionKind::Info => 6,
            OptionKind::Go => 7,
            OptionKind::StructuredReply => 8,
            OptionKind::ListMetaContext => 9,
            OptionKind::SetMetaContext => 10,
            OptionKind::ExtendedHeaders => 11,
            OptionKind::Unknown(code) => code,
        }
    }
}

/// The data of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest<'a> {
    /// The export; empty asks for the default one.
    pub name: &'a str,
    /// Numbers of the information asked for, [`super::Info`]; may hold unknown ones.
    pub wanted: Vec<u16>,
}

impl<'a> ExportRequest<'a> {
    /// Reads the whole data of the option.
    pub fn parse(data: &'a [u8]) -> Result<ExportRequest<'a>, Malformed> {
        let mut fields = Fields::new(data);
        let name_bytes = fields.u32()? as usize;
        let name = fields.text(name_bytes)?;
        let count = usize::from(fields.u16()?);
        if fields.left() != count * 2 {
            return Err(Malformed::Length);
        }
        let mut wanted = Vec::with_capacity(count);
        for _ in 0..count {
            wanted.push(fields.u16()?);
        }
        Ok(ExportRequest { name, wanted })
    }

    /// The option's data. More than 65,535 wanted numbers are cut off.
    pub fn to_bytes(&self) -> Vec<u8> {
        let wanted = &self.wanted[..self.wanted.len().min(u16::MAX.into())];
        let mut out = Vec::with_capacity(6 + self.name.len() + wanted.len() * 2);
        push_text(&mut out, self.name);
        out.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
        for info in wanted {
            out.extend_from_slice(&info.to_be_bytes());
        }
        out
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export; empty asks for the default one.
    pub name: &'a str,
    /// Queries, each a namespace, a colon and a leaf name as far as the client keeps to the rules.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaContextRequest<'a> {
    /// Reads the whole data of the option.
    pub fn parse(data: &'a [u8]) -> Result<MetaContextRequest<'a>, Malformed> {
        let mut fields = Fields::new(data);
        let name_bytes = fields.u32()? as usize;
        let name = fields.text(name_bytes)?;
        let count = fields.u32()? as usize;
        // Each query takes four bytes at least, so this bounds the loop and the allocation by what really came.
        if count > fields.left() / 4 {
            return Err(Malformed::Length);
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            let query_bytes = fields.u32()? as usize;
            queries.push(fields.text(query_bytes)?);
        }
        fields.finish()?;
        Ok(MetaContextRequest { name, queries })
    }

    /// The option's data.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        push_text(&mut out, self.name);
        out.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            push_text(&mut out, query);
        }
        out
    }
}

/// A 32-bit length and a string.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn counts_larger_than_the_data_are_refused_without_allocating() {
        let mut data = vec![0, 0, 0, 0];
        data.extend_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(MetaContextRequest::parse(&data), Err(Malformed::Length));
        let data = [0xff, 0xff, 0xff, 0xff, b'x', 0, 0];
        assert!(matches!(ExportRequest::parse(&data), Err(Malformed::Truncated { .. })));
        assert_eq!(ExportRequest::parse(&[0, 0, 0, 0, 0, 2, 0, 1]), Err(Malformed::Length));
    }

    #[test]
    fn names_longer_than_4096_bytes_are_refused() {
        let long = "a".repeat(4097);
        let request = ExportRequest { name: &long, wanted: vec![] };
        assert_eq!(ExportRequest::parse(&request.to_bytes()), Err(Malformed::Text));
    }

    proptest! {
        #[test]
        fn parsers_take_any_bytes(bytes in vec(any::<u8>(), 0..200)) {
            if let Some(header) = bytes.first_chunk() {
                let _ = OptionHeader::parse(header);
            }
            if let Ok(request) = ExportRequest::parse(&bytes) {
                prop_assert_eq!(request.to_bytes(), &bytes[..]);
            }
            if let Ok(request) = MetaContextRequest::parse(&bytes) {
                prop_assert_eq!(request.to_bytes(), &bytes[..]);
            }
        }

        #[test]
        fn a_cut_message_is_an_error(name in "[a-z]{0,20}", wanted in vec(any::<u16>(), 0..5), cut in 0_usize..40) {
            let request = ExportRequest { name: &name, wanted };
            let bytes = request.to_bytes();
            prop_assert_eq!(ExportRequest::parse(&bytes), Ok(request));
            let cut = cut.min(bytes.len() - 1);
            prop_assert!(ExportRequest::parse(&bytes[..cut]).is_err());
        }

        #[test]
        fn headers_round_trip(code in any::<u32>(), data_bytes in any::<u32>()) {
            let header = OptionHeader { code, data_bytes };
            prop_assert_eq!(OptionHeader::parse(&header.to_bytes()), Ok(header));
            prop_assert_eq!(OptionKind::from_code(code).code(), code);
        }

        #[test]
        fn small_codes_round_trip(code in 0_u32..20) {
            prop_assert_eq!(OptionKind::from_code(code).code(), code);
        }

        #[test]
        fn meta_context_requests_round_trip(name in "\\PC{0,20}", queries in vec("\\PC{0,20}", 0..6)) {
            let request = MetaContextRequest { name: &name, queries: queries.iter().map(String::as_str).collect() };
            let bytes = request.to_bytes();
            prop_assert_eq!(MetaContextRequest::parse(&bytes), Ok(request));
        }
    }
}
