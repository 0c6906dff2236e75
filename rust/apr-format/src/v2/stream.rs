//! Write a version 2 file whose tensors become known one by one. Only the index is kept in memory.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Read, Seek, Write},
    path::Path,
};

use crate::{
    atomic::AtomicFile,
    error::{Error, Result},
    index::Tensor,
    v2::{
        layout::{self, Layout, Spec},
        write,
    },
};

/// Bytes that are collected before they are written, so that a hundred thousand small tensors need few system calls.
const GATHERED: usize = 256 << 10;

/// Writes tensors, in the order in which they are added, to an unnamed file in the directory of the target. When all are
/// known, the head is written to the temporary file of the target and the data are copied after it: the size of the
/// head is not known before.
#[derive(Debug)]
pub struct Stream {
    out: AtomicFile,
    spool: BufWriter<File>,
    /// The CRC32 of all data so far, padding included, so that no byte is read again for the footer.
    hasher: crc32fast::Hasher,
    /// The tensors so far. Their offsets count from the start of the data.
    tensors: BTreeMap<String, Tensor>,
    size: u64,
    /// Whether a write failed, after which the contents of the spool are not known.
    failed: bool,
}

impl Stream {
    /// Start to write the file at `target`.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn create(target: &Path) -> Result<Self> {
        let out = AtomicFile::create(target)?;
        let spool = BufWriter::with_capacity(GATHERED, tempfile::tempfile_in(out.directory())?);
        let hasher = crc32fast::Hasher::new();
        Ok(Self { out, spool, hasher, tensors: BTreeMap::new(), size: 0, failed: false })
    }

    /// Write one tensor.
    ///
    /// # Errors
    /// [`Rule::Invalid`] for a name that was already added, for what the format does not allow and for bytes of a
    /// wrong size; the stream can still be used. After [`Rule::Io`] it cannot.
    pub fn add(&mut self, spec: Spec, bytes: &[u8]) -> Result<()> {
        self.add_from(spec, bytes.len() as u64, &mut &*bytes)
    }

    /// Write one tensor of `size` bytes, taken from a reader.
    ///
    /// # Errors
    /// Those of [`Self::add`] and of the reader.
    pub fn add_from(&mut self, spec: Spec, size: u64, bytes: &mut impl Read) -> Result<()> {
        self.check()?;
        let mut tensor = layout::check(spec)?;
        if self.tensors.contains_key(&tensor.name) {
            return Err(layout::given_twice(&tensor.name));
        }
        if tensor.nbytes != size {
            return Err(write::wrong_size(&tensor, size));
        }
        tensor.offset = self.size;
        let end = layout::end_of(&tensor).ok_or_else(layout::too_large)?;
        self.failed = true;
        write::put_from(&mut self.spool, &mut self.hasher, size, bytes)?;
        write::put(&mut self.spool, &mut self.hasher, write::padding(size))?;
        self.failed = false;
        self.size = end;
        self.tensors.insert(tensor.name.clone(), tensor);
        Ok(())
    }

    /// Write the file, flush it to disk and put it in the place of the target.
    ///
    /// # Errors
    /// [`Rule::Invalid`], [`Rule::Malformed`], [`Rule::Io`]. The target is then unchanged.
    pub fn finish(mut self, json: &str, flags: u16) -> Result<()> {
        self.check()?;
        let layout = Layout::around(self.tensors.into_values().collect(), self.size, json, flags)?;
        let mut whole = crc32fast::Hasher::new();
        whole.update(&layout.head);
        whole.combine(&self.hasher);
        self.out.write_all(&layout.head)?;
        let mut data = self.spool.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        data.rewind()?;
        self.out.append(&mut data, self.size)?;
        self.out.write_all(&whole.finalize().to_le_bytes())?;
        Ok(self.out.commit()?)
    }

    fn check(&self) -> Result<()> {
        if self.failed {
            return Err(Error::invalid("an earlier write failed, so nothing more can be written"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{dtype::Dtype, v2::read, verify};

    fn add(stream: &mut Stream, name: &str, bytes: &[u8]) -> Result<()> {
        stream.add(Spec { name: name.into(), dtype: Dtype::U8, dims: vec![bytes.len() as u64] }, bytes)
    }

    #[test]
    fn data_are_in_the_order_of_adding_and_the_index_is_sorted() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("m.apr");
        let mut stream = Stream::create(&target).unwrap();
        add(&mut stream, "b", &[1; 100]).unwrap();
        add(&mut stream, "empty", &[]).unwrap();
        add(&mut stream, "a", &[2; 64]).unwrap();
        assert_eq!(add(&mut stream, "b", &[3; 5]).unwrap_err().tensor(), Some("b"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the spool has no name");
        stream.finish(r#"{"k":1}"#, 0).unwrap();
        let file = fs::read(&target).unwrap();
        let (header, contents) = read::open(file.as_slice()).unwrap();
        assert!(verify::footer(file.as_slice(), &contents).unwrap().is_some());
        let offsets: Vec<_> =
            contents.tensors.entries().map(|entry| (entry.name, entry.offset - header.data_offset)).collect();
        assert_eq!(offsets, [("a", 128), ("b", 0), ("empty", 128)]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_stream_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("m.apr");
        fs::write(&target, b"old").unwrap();
        let mut stream = Stream::create(&target).unwrap();
        add(&mut stream, "a", &[1; 100]).unwrap();
        drop(stream);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
