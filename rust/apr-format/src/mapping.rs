//! Private copy-on-write mapping of a file.
#![allow(unsafe_code)]

use std::{fs::File, io};

use memmap2::{MmapMut, MmapOptions};

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
