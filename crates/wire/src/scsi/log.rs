//! Log pages (SPC-4 7.3, SBC-4 6.4): what a device without mechanics has to say of itself.

use super::sense::Sense;

/// Supported log pages; with subpage FFh, pages and subpages.
const SUPPORTED: u8 = 0x00;
const WRITE_ERRORS: u8 = 0x02;
const READ_ERRORS: u8 = 0x03;
const PROVISIONING: u8 = 0x0c;
const EXCEPTIONS: u8 = 0x2f;

/// LOG SENSE (SPC-4 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSense {
    /// PC: 0 threshold, 1 cumulative, 2 default threshold, 3 default cumulative values.
    pub control: u8,
    /// Page.
    pub page: u8,
    /// Subpage.
    pub subpage: u8,
    /// The first parameter wanted.
    pub pointer: u16,
    /// Allocation length, in bytes.
    pub allocation_bytes: u32,
}

/// What one direction has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfers {
    /// Bytes that were read or written as asked.
    pub bytes: u64,
    /// Commands that ended in a medium error.
    pub errors: u64,
}

/// Mapping resources of thin provisioning, in threshold sets (SBC-4 4.7.3.7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// What further blocks can be mapped to, shared with other units.
    pub available: u32,
}

/// What the pages are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logs {
    /// Reads.
    pub reads: Transfers,
    /// Writes.
    pub writes: Transfers,
    /// Of a unit that has them.
    pub resources: Option<Resources>,
}

impl Logs {
    fn pages(&self) -> impl Iterator<Item = u8> + '_ {
        let all = [SUPPORTED, WRITE_ERRORS, READ_ERRORS, PROVISIONING, EXCEPTIONS];
        all.into_iter().filter(|page| *page != PROVISIONING || self.resources.is_some())
    }

    fn emit_pages(&self, with_subpages: bool, out: &mut Vec<u8>) {
        for page in self.pages() {
            out.push(page);
            if with_subpages {
                out.push(0);
                if page == SUPPORTED {
                    out.extend_from_slice(&[SUPPORTED, 0xff]);
                }
            }
        }
    }

    /// Appends the page that `request` wants. Errors: no such page, values of a kind that it has not, a pointer beyond its end.
    pub fn emit(&self, request: &LogSense, out: &mut Vec<u8>) -> Result<(), Sense> {
        let supported = self.pages().any(|page| page == request.page);
        if !supported {
            return Err(Sense::in_cdb(2, Some(5)));
        }
        let lists_subpages = request.page == SUPPORTED && request.subpage == 0xff;
        if request.subpage != 0 && !lists_subpages {
            return Err(Sense::in_cdb(3, Some(7)));
        }
        let parameters = match request.page {
            SUPPORTED => Vec::new(),
            WRITE_ERRORS => errors(request, &self.writes)?,
            READ_ERRORS => errors(request, &self.reads)?,
            PROVISIONING => self.resources.iter().map(|resources| available(*resources)).collect(),
            // No exception, and no thermometer.
            _ => vec![Parameter { code: 0, control: LIST, value: vec![0, 0, 0xff, 0] }],
        };
        if request.pointer > parameters.last().map_or(0, |last| last.code) {
            return Err(Sense::in_cdb(5, Some(7)));
        }
        let start = out.len();
        let flags = if lists_subpages { 0x40 } else { 0 }; // SPF
        out.extend_from_slice(&[flags | request.page, request.subpage, 0, 0]);
        if request.page == SUPPORTED {
            self.emit_pages(lists_subpages, out);
        }
        for parameter in parameters.iter().filter(|parameter| parameter.code >= request.pointer) {
            out.extend_from_slice(&parameter.code.to_be_bytes());
            out.extend_from_slice(&[parameter.control, parameter.value.len() as u8]);
            out.extend_from_slice(&parameter.value);
        }
        let bytes = ((out.len() - start - 4) as u16).to_be_bytes();
        out[start + 2..start + 4].copy_from_slice(&bytes);
        Ok(())
    }
}

struct Parameter {
    code: u16,
    control: u8,
    value: Vec<u8>,
}

/// TSD: nothing is saved. A counter that stops at its end.
const COUNTER: u8 = 0x20;
/// TSD; a list in binary format.
const LIST: u8 = 0x23;

/// Error counters (SPC-4 7.3.8): total bytes processed, total uncorrected errors. What else the page may have is about correcting, of
/// which there is nothing here.
fn errors(request: &LogSense, transfers: &Transfers) -> Result<Vec<Parameter>, Sense> {
    let transfers = match request.control {
        1 => *transfers,
        3 => Transfers::default(),
        _ => return Err(Sense::in_cdb(2, Some(7))), // no thresholds
    };
    let counter =
        |code: u16, value: u64| Parameter { code, control: COUNTER, value: value.to_be_bytes().to_vec() };
    Ok(vec![counter(5, transfers.bytes), counter(6, transfers.errors)])
}

/// Available LBA mapping resource count (SBC-4 6.4.5.2), not dedicated to this unit.
fn available(resources: Resources) -> Parameter {
    let mut value = resources.available.to_be_bytes().to_vec();
    value.extend_from_slice(&[0x02, 0, 0, 0]);
    Parameter { code: 1, control: LIST, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: LogSense = LogSense { control: 1, page: 0, subpage: 0, pointer: 0, allocation_bytes: 255 };

    fn logs() -> Logs {
        Logs { writes: Transfers { bytes: 0x0102, errors: 3 }, ..Logs::default() }
    }

    #[test]
    fn every_listed_page_is_there_and_no_other() {
        let with = Logs { resources: Some(Resources { available: 9 }), ..logs() };
        for (logs, pages) in [(logs(), vec![0, 2, 3, 0x2f]), (with, vec![0, 2, 3, 0x0c, 0x2f])] {
            let mut list = Vec::new();
            logs.emit(&ASK, &mut list).unwrap();
            assert_eq!(list[4..], pages);
            for page in 0..0x40 {
                let mut out = Vec::new();
                let told = logs.emit(&LogSense { page, ..ASK }, &mut out);
                assert_eq!(told.is_ok(), pages.contains(&page), "{page:#x}");
                if told.is_ok() {
                    assert_eq!(usize::from(out[3]), out.len() - 4);
                }
            }
        }
        let mut list = Vec::new();
        logs().emit(&LogSense { subpage: 0xff, ..ASK }, &mut list).unwrap();
        assert_eq!(list, [0x40, 0xff, 0, 10, 0, 0, 0, 0xff, 2, 0, 3, 0, 0x2f, 0]);
        assert!(logs().emit(&LogSense { subpage: 1, ..ASK }, &mut list).is_err());
    }

    #[test]
    fn counters_come_from_the_pointer_on_and_have_no_thresholds() {
        let mut out = Vec::new();
        logs().emit(&LogSense { page: 2, pointer: 6, ..ASK }, &mut out).unwrap();
        assert_eq!(out, [2, 0, 0, 12, 0, 6, 0x20, 8, 0, 0, 0, 0, 0, 0, 0, 3]);
        out.clear();
        assert_eq!(
            logs().emit(&LogSense { page: 2, pointer: 7, ..ASK }, &mut out),
            Err(Sense::in_cdb(5, Some(7)))
        );
        assert!(logs().emit(&LogSense { page: 2, control: 0, ..ASK }, &mut out).is_err());
        assert!(out.is_empty());
        logs().emit(&LogSense { page: 2, control: 3, ..ASK }, &mut out).unwrap();
        assert_eq!(out[8..16], [0; 8], "the default of a counter is zero");
    }
}
