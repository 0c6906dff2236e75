//! Copy a file with other metadata and the same tensor data.

use std::io::{self, Write};

use crate::{
    contents::Contents,
    crc::crc32,
    error::{Error, Part, Result, Rule},
    index::Tensor,
    source::Source,
    v2::{
        header::Header,
        layout::Layout,
        write::{WINDOW, put},
    },
};

/// Write the file with other metadata (`json`, a text) and other [`flags`](super::header::flags).
///
/// The data are copied byte for byte, with any gaps between tensors. Every byte of the source is compared with its
/// footer on the way.
///
/// # Errors
/// [`Rule::Checksum`] if the source is damaged, which is known only after `out` is written: discard it then.
/// [`Rule::Invalid`], [`Rule::Malformed`], [`Rule::Io`].
pub fn stamp<W: Write>(
    source: &(impl Source + ?Sized),
    (header, contents): (&Header, &Contents),
    json: &str,
    flags: u16,
    mut out: W,
) -> Result<W> {
    let start = header.data_offset;
    let end = contents.footer.map_or(contents.size, |(offset, _)| offset);
    let tensors = contents.tensors.entries().map(|entry| Tensor {
        // Never negative: the reader has checked it.
        offset: entry.offset.saturating_sub(start),
        ..entry.to_tensor()
    });
    let layout = Layout::around(tensors.collect(), end.saturating_sub(start), json, flags)?;
    out.write_all(&layout.head)?;
    let data = copy(source, start, end, &mut out)?;
    if let Some((offset, stored)) = contents.footer {
        let computed = after(crc32(source, start)?, start, &data);
        if computed != stored {
            return Err(Rule::Checksum { stored, computed }.at(Part::Footer, offset));
        }
    }
    let footer = after(crc32fast::hash(&layout.head), layout.head.len() as u64, &data);
    out.write_all(&footer.to_le_bytes())?;
    Ok(out)
}

/// Return the CRC32 of a head and the data after it. The head has `size` bytes and the CRC32 `head`.
fn after(head: u32, size: u64, data: &crc32fast::Hasher) -> u32 {
    let mut whole = crc32fast::Hasher::new_with_initial_len(head, size);
    whole.combine(data);
    whole.finalize()
}

fn copy(
    source: &(impl Source + ?Sized),
    start: u64,
    end: u64,
    out: &mut impl Write,
) -> Result<crc32fast::Hasher> {
    let mut hasher = crc32fast::Hasher::new();
    let mut window = vec![0; WINDOW];
    let mut at = start;
    while at < end {
        let size = usize::try_from(end - at).map_or(WINDOW, |rest| rest.min(WINDOW));
        let bytes = &mut window[..size];
        source.read_at(at, bytes).map_err(|error| cut_short(source, error, end))?;
        put(out, &mut hasher, bytes)?;
        at += size as u64;
    }
    Ok(hasher)
}

/// Return the error for a file that is shorter than when it was opened.
fn cut_short(source: &(impl Source + ?Sized), error: io::Error, need: u64) -> Error {
    match source.size() {
        Ok(have) if error.kind() == io::ErrorKind::UnexpectedEof => Error::truncated(Part::Data, need, have),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dtype::Dtype,
        v2::{header::flags, layout::Spec, read, write::Writer},
        verify,
    };

    fn file() -> Vec<u8> {
        let specs = vec![Spec { name: "a".into(), dtype: Dtype::U8, dims: vec![300_000] }];
        let mut writer = Writer::new(Vec::new(), Layout::new(specs, "{}", 0).unwrap()).unwrap();
        writer.tensor(&vec![7; 300_000]).unwrap();
        writer.finish().unwrap()
    }

    fn stamped(bytes: &[u8]) -> Result<Vec<u8>> {
        let (header, contents) = read::open(bytes)?;
        stamp(bytes, (&header, &contents), r#"{"k":[1,2,3]}"#, flags::SHARDED, Vec::new())
    }

    #[test]
    fn the_data_stay_and_the_new_file_verifies() {
        let old = file();
        let new = stamped(&old).unwrap();
        let (header, contents) = read::open(new.as_slice()).unwrap();
        assert!(verify::footer(new.as_slice(), &contents).unwrap().is_some());
        assert_eq!(contents.metadata(new.as_slice()).unwrap(), r#"{"k":[1,2,3]}"#);
        assert_eq!(header.flags, flags::SHARDED | flags::ROW_MAJOR);
        let offset =
            |contents: &Contents| usize::try_from(contents.tensors.entries().next().unwrap().offset).unwrap();
        let (from, to) = (offset(&read::open(old.as_slice()).unwrap().1), offset(&contents));
        assert_eq!(old[from..from + 300_000], new[to..to + 300_000]);
    }

    #[test]
    fn damage_anywhere_in_the_source_is_found() {
        let old = file();
        for at in (0..old.len()).step_by(257).chain([old.len() - 1]) {
            let mut damaged = old.clone();
            damaged[at] ^= 1;
            assert!(stamped(&damaged).is_err(), "byte {at}");
        }
    }
}
