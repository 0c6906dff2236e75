//! Check every byte of an open file and report on each part.

use std::io;

use crate::{
    contents::{Contents, cut_short},
    crc::crc32,
    error::{Error, Part, Result, Rule},
    index::Entry,
    source::Source,
};

/// The result of checking one part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The part.
    pub part: Part,
    /// Whether the part is correct; `None` if the file contains nothing to compare it with.
    pub passed: Option<bool>,
    /// What was checked, or what is wrong.
    pub detail: String,
    /// The tensor that is wrong.
    pub tensor: Option<String>,
    /// The byte that is wrong, counted from the start of the file.
    pub offset: Option<u64>,
}

/// The results of checking a file.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Whether the file can be opened.
    pub opened: bool,
    /// The checks in file order, up to the part that prevents opening.
    pub checks: Vec<Check>,
}

impl Findings {
    /// Whether the file can be opened and no check failed. A check whose result is `None` did not fail.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.opened && self.checks.iter().all(|check| check.passed != Some(false))
    }

    /// Report on a file that cannot be opened: the parts before the broken one passed. `parts` are in the order in which
    /// they are checked.
    #[must_use]
    pub fn unopened(error: &Error, parts: &[Part]) -> Self {
        let broken = error.part().unwrap_or(Part::Magic);
        let before = parts.iter().take_while(|part| **part != broken);
        let passed = before.map(|part| passed(*part, "correct".into()));
        Self { opened: false, checks: passed.chain([failed(broken, error)]).collect() }
    }
}

/// Check what opening leaves out: the metadata, tied tensors and every byte. `magic` and `header` are the details of
/// those parts, which opening has checked.
///
/// # Errors
/// Only those of the operating system. Everything else is a finding.
pub fn opened(
    source: &(impl Source + ?Sized),
    contents: &Contents,
    magic: String,
    header: String,
) -> io::Result<Findings> {
    let mut checks = vec![
        passed(Part::Magic, magic),
        passed(Part::Header, header),
        metadata(contents.metadata(source))?,
        passed(Part::Index, format!("{} tensors", contents.tensors.len())),
    ];
    let tied = contents.tensors.entries().filter(Entry::is_tied);
    let data = tied.map(|entry| contents.stored(entry.to_tensor())).try_for_each(|stored| stored.map(|_| ()));
    checks.push(match data {
        Ok(()) => passed(Part::Data, format!("{} bytes, all tensors in bounds, none overlap", contents.size)),
        Err(error) => failed(Part::Data, &error),
    });
    checks.push(match footer(source, contents) {
        Ok(Some(crc)) => passed(Part::Footer, format!("CRC32 {crc:#010x} of all bytes before it")),
        Ok(None) => Check {
            passed: None,
            ..passed(
                Part::Footer,
                "cannot be verified: the file has no footer (some old writers left it out)".into(),
            )
        },
        Err(Error { rule: Rule::Io(error), .. }) => return Err(error),
        Err(error) => failed(Part::Footer, &error),
    });
    Ok(Findings { opened: true, checks })
}

/// Compare the footer with the bytes before it and return it; `None` if the file has no footer.
///
/// # Errors
/// [`Rule::Checksum`], [`Rule::CutShort`], [`Rule::Io`].
pub fn footer(source: &(impl Source + ?Sized), contents: &Contents) -> Result<Option<u32>> {
    let Some((offset, stored)) = contents.footer else {
        return Ok(None);
    };
    let computed = crc32(source, offset).map_err(|error| cut_short(source, contents.size, error.into()))?;
    if computed == stored {
        return Ok(Some(stored));
    }
    Err(Rule::Checksum { stored, computed }.at(Part::Footer, offset))
}

/// Return the check of the metadata from the result of reading them.
pub(crate) fn metadata(text: Result<impl AsRef<str>>) -> io::Result<Check> {
    match text {
        Ok(json) => Ok(passed(Part::Metadata, format!("{} bytes of JSON", json.as_ref().len()))),
        Err(Error { rule: Rule::Io(error), .. }) => Err(error),
        Err(error) => Ok(failed(Part::Metadata, &error)),
    }
}

/// Return a check that passed.
pub(crate) fn passed(part: Part, detail: String) -> Check {
    Check { part, passed: Some(true), detail, tensor: None, offset: None }
}

/// Return a check that failed.
pub(crate) fn failed(part: Part, error: &Error) -> Check {
    Check {
        part,
        passed: Some(false),
        detail: error.to_string(),
        tensor: error.tensor().map(Into::into),
        offset: error.offset(),
    }
}
