//! Writing a v2 file straight through: all sizes are known, nothing is held but the tensor at hand.

use std::io::Write;

use crate::{
    error::{Error, Result},
    v2::{align, index::Tensor, layout::Layout},
};

/// Bytes hashed and then written at a time: the second pass finds them in the cache.
const WINDOW: usize = 256 << 10;

/// Writes the parts of a [`Layout`] in file order, and the CRC32 of them all at the end.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    hasher: crc32fast::Hasher,
    tensors: std::vec::IntoIter<Tensor>,
}

impl<W: Write> Writer<W> {
    /// Write header, metadata and index.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(out: W, layout: Layout) -> Result<Self> {
        let mut writer = Self { out, hasher: crc32fast::Hasher::new(), tensors: layout.tensors.into_iter() };
        writer.put(&layout.head)?;
        Ok(writer)
    }

    /// The tensor whose bytes are due next.
    #[must_use]
    pub fn due(&self) -> Option<&Tensor> {
        self.tensors.as_slice().first()
    }

    /// Write the bytes of the tensor that is due, and its padding.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where none is due or the size is not the tensor's; the operating system's.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(tensor) = self.tensors.next() else {
            return Err(Error::Unwritable { tensor: None, what: "more values than tensors".into() });
        };
        let size = bytes.len() as u64;
        if size != tensor.nbytes {
            let Tensor { name, dims, nbytes, dtype, .. } = tensor;
            let dtype = dtype.name();
            let what = format!("tensor {name:?}: {size} bytes given, but {dtype} {dims:?} takes {nbytes}");
            return Err(Error::Unwritable { tensor: Some(name), what });
        }
        self.put(bytes)?;
        let padding = align(size).map_or(0, |padded| padded - size);
        // Less than the alignment of 64.
        self.put(&[0; 64][..usize::try_from(padding).unwrap_or(0)])
    }

    /// Write the footer.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where a tensor is still due; the operating system's.
    pub fn finish(mut self) -> Result<W> {
        if let Some(Tensor { name, .. }) = self.tensors.next() {
            let what = format!("tensor {name:?} was given no values");
            return Err(Error::Unwritable { tensor: Some(name), what });
        }
        self.out.write_all(&self.hasher.finalize().to_le_bytes())?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        for window in bytes.chunks(WINDOW) {
            self.hasher.update(window);
            self.out.write_all(window)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dtype::Dtype,
        v2::{layout::Spec, read, verify},
    };

    fn spec(name: &str, dtype: Dtype, dims: &[u64]) -> Spec {
        Spec { name: name.into(), dtype, dims: dims.into() }
    }

    fn written(specs: Vec<Spec>, json: &str) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), Layout::new(specs, json, false).unwrap()).unwrap();
        while let Some(nbytes) = writer.due().map(|tensor| tensor.nbytes) {
            writer.tensor(&vec![7; usize::try_from(nbytes).unwrap()]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_opens_and_verifies() {
        let specs = vec![
            spec("b", Dtype::Bf16, &[3, 5]),
            spec("a", Dtype::F64, &[]),
            spec("empty", Dtype::I8, &[0, 4]),
            spec("k", Dtype::Q6K, &[3, 300]),
        ];
        let bytes = written(specs, r#"{"z":1,"a":2}"#);
        let contents = read::open(bytes.as_slice()).unwrap();
        assert_eq!(contents.metadata, r#"{"z":1,"a":2}"#);
        let names: Vec<_> = contents.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "empty", "k"]);
        assert_eq!(contents.tensors[3].nbytes, 3 * 2 * 210);
        assert!(verify::footer(bytes.as_slice(), &contents).unwrap().is_some());
        assert_eq!(contents.size, bytes.len() as u64);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let bytes = written(vec![spec("a", Dtype::F32, &[5])], "{}");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let found = read::open(damaged.as_slice())
                .and_then(|contents| verify::footer(damaged.as_slice(), &contents));
            assert!(found.is_err(), "byte {at}");
        }
    }

    #[test]
    fn values_of_the_wrong_size_are_refused_by_name() {
        let mut writer =
            Writer::new(Vec::new(), Layout::new(vec![spec("a", Dtype::F32, &[5])], "{}", false).unwrap())
                .unwrap();
        assert_eq!(writer.tensor(&[0; 19]).unwrap_err().tensor(), Some("a"));
    }
}
