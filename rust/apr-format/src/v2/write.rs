//! Write a version 2 file from start to end, all sizes being known. Only the current tensor is in memory.

use std::io::{self, Read, Write};

use crate::{
    error::{Error, Result},
    index::Tensor,
    v2::{align, layout::Layout},
};

/// Bytes that are hashed and then written at a time, so that writing finds them in the cache.
pub(crate) const WINDOW: usize = 256 << 10;

/// Writes the parts of a [`Layout`] in file order, then the CRC32 of all of them.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    hasher: crc32fast::Hasher,
    tensors: std::vec::IntoIter<Tensor>,
    /// The bytes of the current tensor that are already written.
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Write header, metadata and index.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new(out: W, layout: Layout) -> Result<Self> {
        let tensors = layout.tensors.into_iter();
        let mut writer = Self { out, hasher: crc32fast::Hasher::new(), tensors, written: 0 };
        writer.put(&layout.head)?;
        Ok(writer)
    }

    /// Return the current tensor, whose bytes must be written next; `None` if all are written.
    #[must_use]
    pub fn due(&self) -> Option<&Tensor> {
        self.tensors.as_slice().first()
    }

    /// Write all bytes of the current tensor and its padding.
    ///
    /// # Errors
    /// [`Rule::Invalid`] if there is no current tensor or the size is not its own; [`Rule::Io`].
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<()> {
        self.part(bytes)?;
        self.end()
    }

    /// Write the next bytes of the current tensor.
    ///
    /// # Errors
    /// [`Rule::Invalid`] if there is no current tensor or it has fewer bytes; [`Rule::Io`].
    pub fn part(&mut self, bytes: &[u8]) -> Result<()> {
        let given = self.check_room(bytes.len() as u64)?;
        self.put(bytes)?;
        self.written = given;
        Ok(())
    }

    /// Write the next `size` bytes of the current tensor, taken from a reader.
    ///
    /// # Errors
    /// [`Rule::Invalid`] if there is no current tensor or it has fewer bytes; [`Rule::Io`], also for the reader.
    pub fn part_from(&mut self, size: u64, bytes: &mut impl Read) -> Result<()> {
        let given = self.check_room(size)?;
        put_from(&mut self.out, &mut self.hasher, size, bytes)?;
        self.written = given;
        Ok(())
    }

    /// Return how many bytes of the current tensor are written once `size` more are.
    fn check_room(&self, size: u64) -> Result<u64> {
        let given = self.written.saturating_add(size);
        match self.due() {
            Some(tensor) if given <= tensor.nbytes => Ok(given),
            Some(due) => Err(wrong_size(due, given)),
            None => Err(none_due()),
        }
    }

    /// Write the padding of the current tensor, which must be complete, and continue with the next one.
    ///
    /// # Errors
    /// [`Rule::Invalid`] if there is no current tensor or bytes of it are missing; [`Rule::Io`].
    pub fn end(&mut self) -> Result<()> {
        let given = self.written;
        match self.due() {
            Some(tensor) if given == tensor.nbytes => {}
            Some(due) => return Err(wrong_size(due, given)),
            None => return Err(none_due()),
        }
        self.put(padding(given))?;
        self.tensors.next();
        self.written = 0;
        Ok(())
    }

    /// Write the footer.
    ///
    /// # Errors
    /// [`Rule::Invalid`] if a tensor is missing; [`Rule::Io`].
    pub fn finish(mut self) -> Result<W> {
        if let Some(Tensor { name, .. }) = self.tensors.next() {
            return Err(Error::invalid("no values were written").of_tensor(name));
        }
        self.out.write_all(&self.hasher.finalize().to_le_bytes())?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(put(&mut self.out, &mut self.hasher, bytes)?)
    }
}

/// Hash and write.
pub(crate) fn put(out: &mut impl Write, hasher: &mut crc32fast::Hasher, bytes: &[u8]) -> io::Result<()> {
    for window in bytes.chunks(WINDOW) {
        hasher.update(window);
        out.write_all(window)?;
    }
    Ok(())
}

/// Hash and write `size` bytes of a reader. The copy into a window costs little: hashing and writing then find the bytes
/// in the cache.
pub(crate) fn put_from(
    out: &mut impl Write,
    hasher: &mut crc32fast::Hasher,
    size: u64,
    bytes: &mut impl Read,
) -> io::Result<()> {
    let mut left = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut window = vec![0; left.min(WINDOW)];
    while left > 0 {
        window.truncate(left);
        bytes.read_exact(&mut window)?;
        hasher.update(&window);
        out.write_all(&window)?;
        left -= window.len();
    }
    Ok(())
}

/// Return the zeros that follow `size` bytes.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; 64] = [0; 64];
    let size = align(size).map_or(0, |padded| padded - size);
    // Less than the alignment of 64, so the range is always inside.
    &ZEROS[..usize::try_from(size).unwrap_or(0)]
}

/// Return the error for bytes whose number is not the size of the tensor.
pub(crate) fn wrong_size(tensor: &Tensor, given: u64) -> Error {
    let Tensor { name, dims, nbytes, dtype, .. } = tensor;
    let what = format!("{given} bytes were given, but {dtype} {dims:?} takes {nbytes}");
    Error::invalid(what).of_tensor(name)
}

fn none_due() -> Error {
    Error::invalid("all tensors are already written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dtype::Dtype,
        v2::{layout::Spec, read},
        verify,
    };

    fn spec(name: &str, dtype: Dtype, dims: &[u64]) -> Spec {
        Spec { name: name.into(), dtype, dims: dims.into() }
    }

    fn written(specs: Vec<Spec>, json: &str) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), Layout::new(specs, json, 0).unwrap()).unwrap();
        while let Some(nbytes) = writer.due().map(|tensor| tensor.nbytes) {
            writer.tensor(&vec![7; usize::try_from(nbytes).unwrap()]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_written_file_opens_and_verifies() {
        let specs = vec![
            spec("b", Dtype::Bf16, &[3, 5]),
            spec("a", Dtype::F64, &[]),
            spec("empty", Dtype::I8, &[0, 4]),
            spec("k", Dtype::Q6K, &[3, 300]),
        ];
        let bytes = written(specs, r#"{"z":1,"a":2}"#);
        let (_, contents) = read::open(bytes.as_slice()).unwrap();
        assert_eq!(contents.metadata(bytes.as_slice()).unwrap(), r#"{"z":1,"a":2}"#);
        let names: Vec<_> = contents.tensors.names().collect();
        assert_eq!(names, ["a", "b", "empty", "k"]);
        assert_eq!(contents.tensor("k").unwrap().nbytes, 3 * 2 * 210);
        assert!(verify::footer(bytes.as_slice(), &contents).unwrap().is_some());
        assert_eq!(contents.size, bytes.len() as u64);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let bytes = written(vec![spec("a", Dtype::F32, &[5])], "{}");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let checked = read::open(damaged.as_slice())
                .and_then(|(_, contents)| verify::footer(damaged.as_slice(), &contents));
            assert!(checked.is_err(), "byte {at}");
        }
    }

    #[test]
    fn parts_of_a_tensor_are_the_same_bytes_as_the_whole() {
        let specs = || vec![spec("a", Dtype::I8, &[100]), spec("none", Dtype::I8, &[0])];
        let layout = || Layout::new(specs(), "{}", 0).unwrap();
        let mut whole = Writer::new(Vec::new(), layout()).unwrap();
        whole.tensor(&[3; 100]).unwrap();
        whole.tensor(&[]).unwrap();
        let mut parts = Writer::new(Vec::new(), layout()).unwrap();
        parts.part(&[3; 63]).unwrap();
        assert_eq!(parts.end().unwrap_err().tensor(), Some("a"));
        parts.part(&[3; 37]).unwrap();
        assert_eq!(parts.part(&[3]).unwrap_err().tensor(), Some("a"));
        parts.end().unwrap();
        parts.end().unwrap();
        assert_eq!(whole.finish().unwrap(), parts.finish().unwrap());
    }

    #[test]
    fn flags_that_no_written_file_has_are_refused() {
        for bit in [0, 1, 2, 3, 11] {
            assert!(Layout::new(vec![], "{}", 1 << bit).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn values_of_the_wrong_size_are_refused_by_name() {
        let mut writer =
            Writer::new(Vec::new(), Layout::new(vec![spec("a", Dtype::F32, &[5])], "{}", 0).unwrap())
                .unwrap();
        assert_eq!(writer.tensor(&[0; 19]).unwrap_err().tensor(), Some("a"));
    }
}
