//! Private copy-on-write mapping of a file, or of memory that stands for one.
#![allow(unsafe_code)]

use std::{fs::File, io, ptr};

use memmap2::{MmapMut, MmapOptions};

use crate::source::Source;

/// A whole file, mapped privately: writing to its pages never reaches the file.
///
/// No reference to the pages is ever formed here, so that whoever holds the pointer may write
/// through it. It reserves no swap: a file larger than memory opens.
#[derive(Debug)]
pub struct Mapping(MmapMut);

impl Mapping {
    /// Map an open file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the pages are reached through `as_ptr` only. A file that another process cuts
        // short while it is mapped ends this one with SIGBUS, as with every mapped format;
        // `save` never writes into a file in place.
        unsafe { MmapOptions::new().no_reserve_swap().map_copy(file) }.map(Self)
    }

    /// Pages of no file, zeroed, then filled. A page takes memory once it is written to, so that a length
    /// that lies costs nothing.
    ///
    /// # Errors
    /// The operating system's, and what `fill` returns.
    pub fn filled<E: From<io::Error>>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut pages = MmapOptions::new().len(len).map_anon()?;
        fill(&mut pages)?;
        Ok(Self(pages))
    }

    /// Address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the file is empty (never, for a file that opened).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Source for Mapping {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| start.checked_add(buffer.len()).is_some_and(|end| end <= self.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        // SAFETY: the range is inside the pages, and the buffer, an exclusive borrow, is not among them.
        // Whoever writes to the pages meanwhile gets mixed values here, as with every view of them.
        unsafe { ptr::copy_nonoverlapping(self.as_ptr().add(start), buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }
}
