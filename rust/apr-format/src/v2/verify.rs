//! The footer's check, over every byte of the file.

use crate::{
    crc::crc32,
    error::{Error, Result},
    source::Source,
    v2::read::Contents,
};

/// Compare the footer with every byte before it; false where the file has no footer.
///
/// # Errors
/// [`Error::FooterChecksum`]; the operating system's.
pub fn footer(source: &(impl Source + ?Sized), contents: &Contents) -> Result<bool> {
    let Some((offset, stored)) = contents.footer else {
        return Ok(false);
    };
    let computed = crc32(source, offset)?;
    if computed == stored {
        return Ok(true);
    }
    Err(Error::FooterChecksum { offset, stored, computed })
}
