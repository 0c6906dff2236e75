//! A private copy-on-write mapping of a file, or anonymous memory in place of one.
#![allow(unsafe_code)]

use std::{fs::File, io, ptr};

use memmap2::{MmapOptions, MmapRaw};

use crate::source::Source;

/// A whole file, mapped privately: writes to its pages never reach the file.
///
/// Python and torch read and write the pages through [`Mapping::as_mut_ptr`] at any time and from any thread.
/// A Rust reference to the pages would promise the compiler that this does not happen, so none exists once
/// the mapping is built: `MmapRaw` hands out raw pointers only.
///
/// This does not make concurrent access safe. Copying pages while another thread or process writes to them is a
/// data race in Rust's memory model. Whoever writes to the pages must keep that from happening, as with the
/// memory of a `NumPy` array.
///
/// The mapping reserves no swap, so a file larger than memory opens.
#[derive(Debug)]
pub struct Mapping(MmapRaw);

impl Mapping {
    /// Map an open file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: `map_copy` is unsafe because another process may change the file while its pages are in
        // use. No reference to the pages is formed, here or in any method of `Mapping`, so none is
        // invalidated. That nobody changes the file during a read is relied on and cannot be checked: writers
        // of this format replace a file instead of changing it. A file that is truncated while it is mapped
        // ends the process with SIGBUS; that is a crash, not undefined behavior.
        let pages = unsafe { MmapOptions::new().no_reserve_swap().map_copy(file) }?;
        Ok(Self(pages.into()))
    }

    /// Allocate anonymous memory of `len` zero bytes and pass it to `fill`.
    ///
    /// Pages take memory when they are first written, so an absurd length in a hostile file costs nothing.
    ///
    /// # Errors
    /// The operating system's, and those of `fill`.
    pub fn filled<E: From<io::Error>>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        // This is still a `MmapMut`, which nobody else has: the reference that `fill` gets is exclusive, and
        // its borrow ends before the pages become a `Mapping` that can be shared.
        let mut pages = MmapOptions::new().len(len).map_anon()?;
        fill(&mut pages)?;
        Ok(Self(pages.into()))
    }

    /// Return the address of the first byte. The pages stay mapped, readable and writable while the mapping lives.
    ///
    /// A thread that writes through the address must synchronize with every thread that reads the same bytes,
    /// [`Source::read_at`] included.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Return the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the length is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
        // SAFETY: `start + buffer.len()` is at most `len`, so the source lies within the pages, which stay
        // mapped while `self` is borrowed. The destination is an exclusive borrow and no reference to the
        // pages exists, so the two do not overlap. The copy is not atomic: a thread that writes to the same
        // bytes meanwhile makes it a data race. That there is none is relied on and cannot be checked here;
        // it is the duty of whoever writes through `as_mut_ptr`, as NumPy requires for arrays.
        unsafe { ptr::copy_nonoverlapping(self.as_mut_ptr().add(start), buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: &[u8]) -> Mapping {
        Mapping::filled(bytes.len(), |out| {
            out.copy_from_slice(bytes);
            io::Result::Ok(())
        })
        .unwrap()
    }

    fn read(mapping: &Mapping, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        mapping.read_at(offset, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn reads_any_range_and_refuses_what_ends_beyond_the_last_byte() {
        let mapping = filled(b"abc");
        assert_eq!(read(&mapping, 0, 3).unwrap(), b"abc");
        assert_eq!(read(&mapping, 1, 2).unwrap(), b"bc");
        assert_eq!(read(&mapping, 3, 0).unwrap(), b"");
        for (offset, len) in [(0, 4), (3, 1), (4, 0), (u64::MAX, 1)] {
            let error = read(&mapping, offset, len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len} bytes at {offset}");
        }
    }

    /// What Python does: it keeps the pointer and writes through it while Rust reads and asks for the length.
    #[test]
    fn writes_through_the_pointer_are_visible_to_later_reads() {
        let mapping = filled(b"abc");
        let pointer = mapping.as_mut_ptr();
        assert_eq!(read(&mapping, 0, 3).unwrap(), b"abc");
        // SAFETY: byte 1 of 3, and no other thread uses the mapping.
        unsafe { pointer.add(1).write(b'x') };
        assert_eq!((mapping.len(), mapping.is_empty()), (3, false));
        assert_eq!(read(&mapping, 0, 3).unwrap(), b"axc");
        // SAFETY: as before; the pointer outlives the calls in between.
        unsafe { pointer.write(b'y') };
        assert_eq!(read(&mapping, 0, 3).unwrap(), b"yxc");
    }

    #[test]
    fn an_error_while_filling_is_returned() {
        let error = Mapping::filled(8, |_| Err::<(), _>(io::Error::from(io::ErrorKind::InvalidData)));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn writes_to_the_pages_of_a_file_leave_the_file_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        let mapping = Mapping::new(&File::open(&path).unwrap()).unwrap();
        // SAFETY: byte 0 of 3, and no other thread uses the mapping.
        unsafe { mapping.as_mut_ptr().write(b'x') };
        assert_eq!(read(&mapping, 0, 3).unwrap(), b"xbc");
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }
}
