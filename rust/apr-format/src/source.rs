//! Sources of bytes: an open file, read by position, or memory.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Bytes that can be read by position, from several threads at once.
pub trait Source: Sync {
    /// Return the length in bytes.
    ///
    /// # Errors
    /// Those of the operating system.
    fn size(&self) -> io::Result<u64>;

    /// Fill `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Those of the operating system; `UnexpectedEof` if the source ends before the buffer is full.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Source for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

/// Open a regular file.
///
/// # Errors
/// Those of the operating system; `IsADirectory`; `InvalidInput` for what cannot be read by position.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Checked before opening: opening a named pipe blocks until another process writes to it.
    let kind = path.metadata()?;
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// Read `size` bytes from `offset` on. The caller has compared both with the size of the source.
///
/// # Errors
/// Those of the operating system; `OutOfMemory` instead of an abort if the memory cannot be allocated.
pub fn read_vec(source: &(impl Source + ?Sized), offset: u64, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(size, 0);
    source.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
