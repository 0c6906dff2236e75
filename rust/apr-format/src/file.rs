//! Opening a path for reading.

use std::{fs::File, io, path::Path};

/// Open a regular file.
///
/// # Errors
/// The operating system's; a directory, or something that cannot be read by position.
pub fn open(path: &Path) -> io::Result<File> {
    // Asked before opening: opening a named pipe would wait for its writer.
    let found = path.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}
