//! Checks and mutations that several fuzz targets share.

use apr_format::{
    Dtype, Error, Keys, Kind, Part,
    internal::{
        container::{self, Container, Form},
        contents::Contents,
        index::{Entry, Tensor},
        quant,
        source::{Source, read_vec},
        v2::{
            align,
            header::{Header, flags},
            layout::{Layout, Spec},
            write::Writer,
        },
        verify::{self, Findings},
        watch::Watch,
    },
};

use libfuzzer_sys::arbitrary::{self, Arbitrary};

/// The number of values of the largest tensor that is dequantized. Larger ones take longer and test nothing more.
const MOST: u64 = 1 << 20;

/// Run the tasks of rayon on the thread of the fuzzer. Sending tasks this small to other threads takes longer.
///
/// # Panics
/// If it is called twice.
pub fn on_this_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("no pool before this one");
}

/// A version 2 file whose metadata are valid.
pub struct Valid {
    /// The header.
    pub header: Header,
    /// The index and the footer.
    pub contents: Contents,
    /// The text of the metadata.
    pub metadata: String,
}

/// Open and verify a file of any form. If it opens, check that it keeps every rule of the format and that every tensor
/// can be read. Return a version 2 file whose metadata are valid.
///
/// # Panics
/// On a finding.
pub fn check(bytes: &[u8]) -> Option<Valid> {
    check_with(bytes, &Keys::default())
}

/// Do the same as [`check`], with keys.
///
/// # Panics
/// On a finding.
pub fn check_with(bytes: &[u8], keys: &Keys) -> Option<Valid> {
    let findings = container::verify_with(bytes, keys).expect("memory has no I/O errors");
    let opened = Container::open_with(bytes, keys);
    assert_eq!(findings.opened, opened.is_ok());
    let container = match opened {
        Ok(container) => container,
        Err(error) => {
            let is_about_keys =
                keys.refuse().is_err() && matches!(error.kind(), Kind::Decryption | Kind::Signature);
            check_error(&error, is_about_keys);
            return None;
        }
    };
    let contents = container.contents();
    assert_eq!(contents.size, bytes.len() as u64);
    let metadata = read_metadata(&container, &findings);
    check_index(contents);
    let image = match container.image() {
        Ok(image) => image,
        Err(error) => {
            let v1 = container.v1().expect("the other forms are unpacked when they are opened");
            assert!(
                v1.is_locked() || findings.checks.iter().any(|check| check.passed == Some(false)),
                "{error}"
            );
            return None;
        }
    };
    let size = image.size().expect("memory has no I/O errors");
    let header = match container.form() {
        Form::V2(header) => Some(header),
        _ => None,
    };
    check_places(contents, container.form(), size);
    for entry in contents.tensors.entries() {
        read_tensor(&image, contents, &entry.to_tensor());
    }
    let footer = container.check_footer(&Watch::default());
    let check = findings.checks.iter().find(|check| check.part == Part::Footer);
    assert_eq!(
        check.expect("the footer's check").passed,
        footer.map_or(Some(false), |crc| crc.map(|_| true))
    );
    Some(Valid { header: header?.clone(), contents: contents.clone(), metadata: metadata? })
}

/// Check that the message is one line, and that it names a place unless it is about a key.
fn check_error(error: &Error, is_about_keys: bool) {
    let line = error.to_string();
    assert!(!line.contains(['\n', '\r']), "{line:?}");
    assert!(error.offset().is_some() || is_about_keys, "{line}");
    assert!(error.part().is_some(), "{line}");
}

/// Read the metadata. Check that another JSON parser accepts valid ones, and that the report names an error in others.
fn read_metadata(container: &Container<&[u8]>, findings: &Findings) -> Option<String> {
    let check = findings.checks.iter().find(|check| check.part == Part::Metadata);
    let passed = check.expect("the metadata's check").passed;
    match container.metadata() {
        Ok(text) => {
            assert_eq!(passed, Some(true));
            let parsed: serde_json::Value = serde_json::from_str(&text).expect("it was checked");
            let object = parsed.as_object().expect("an object");
            for key in object.keys().take(4) {
                let member = container.member(key).expect("it was checked").expect("it has this key");
                assert_eq!(serde_json::from_str::<serde_json::Value>(&member).ok().as_ref(), object.get(key));
            }
            Some(text.into_owned())
        }
        Err(error) => {
            assert_eq!((passed, error.part()), (Some(false), Some(Part::Metadata)));
            check_error(&error, false);
            None
        }
    }
}

fn check_index(contents: &Contents) {
    let names: Vec<_> = contents.tensors.names().collect();
    assert_eq!(names.len(), contents.tensors.len());
    assert!(names.is_sorted_by(|a, b| a < b));
    assert!(names.iter().all(|name| !name.is_empty() && !name.contains('\0')));
}

/// Check that the parts and the tensors follow one another. `size` is that of the image in which offsets count.
fn check_places(contents: &Contents, form: &Form, size: u64) {
    let (metadata_end, index_offset, data_offset, count) = match form {
        Form::V2(header) => {
            (header.metadata_end(), header.tensor_index_offset, header.data_offset, header.tensor_count)
        }
        Form::Json(header) | Form::Wrapped { header, .. } => (
            header.metadata_offset + u64::from(header.metadata_size),
            header.tensor_index_offset,
            header.data_offset,
            header.tensor_count,
        ),
        Form::V1(..) => return,
    };
    assert!(metadata_end <= index_offset);
    assert!(index_offset <= data_offset);
    assert_eq!(count as usize, contents.tensors.len());
    let padded = matches!(form, Form::V2(_));
    let footer = contents.footer.map_or(size, |(offset, _)| offset);
    let mut end = data_offset;
    let mut entries: Vec<_> = contents.tensors.entries().filter(|entry| entry.nbytes > 0).collect();
    entries.sort_by_key(|entry| entry.offset);
    for tensor in entries {
        assert!(tensor.offset >= end, "{tensor:?} starts before {end}");
        end = tensor.offset + tensor.nbytes;
        let padded_end = if padded { align(end) } else { Some(end) };
        assert!(padded_end.is_some_and(|end| end <= footer), "{tensor:?} ends after {footer}");
        assert!(!padded || tensor.offset.is_multiple_of(64));
        assert!(tensor.count() > 0 || tensor.dtype == Dtype::Q8, "an empty tensor has no bytes: {tensor:?}");
    }
}

fn read_tensor(image: &impl Source, contents: &Contents, tensor: &Tensor) {
    assert_eq!(contents.tensor(&tensor.name).as_ref(), Some(tensor));
    let Ok(stored) = contents.stored(tensor.clone()) else {
        assert!(tensor.is_tied());
        return;
    };
    assert_eq!(stored.dims, tensor.dims);
    if stored.count() > MOST {
        return;
    }
    read_vec(image, stored.offset, stored.nbytes).expect("its bytes are there");
    if stored.dtype.is_quantized() {
        let mut values = vec![0.0; usize::try_from(stored.count()).expect("at most 2^20")];
        quant::dequantize(image, &stored, 0, &mut values).expect("its size was checked");
    }
}

/// Return the stored bytes of a tensor.
///
/// # Panics
/// If they are not in the file.
#[must_use]
pub fn stored<'a>(bytes: &'a [u8], tensor: &Entry) -> &'a [u8] {
    let [start, size] =
        [tensor.offset, tensor.nbytes].map(|n| usize::try_from(n).expect("a place in memory"));
    &bytes[start..start + size]
}

/// Write the tensors of a file again and check that names, dtypes, dimensions, bytes and metadata are the same.
///
/// # Panics
/// On a finding.
pub fn round_trip(bytes: &[u8], file: &Valid) {
    let Valid { header, contents, metadata } = file;
    let dims = |entry: &Entry| entry.dims().collect::<Vec<_>>();
    // The reader accepts tied heads and flat K-quants, but the writer stores them in another form.
    let kept = |entry: &Entry| entry.dtype.nbytes(&dims(entry)) == Some(entry.nbytes);
    let spec = |entry: Entry| Spec { name: entry.name.into(), dtype: entry.dtype, dims: dims(&entry) };
    let specs: Vec<_> = contents.tensors.entries().filter(kept).map(spec).collect();
    let flags = header.flags & !flags::NEVER_WRITTEN;
    let layout = Layout::new(specs, metadata, flags).expect("what was read can be written");
    let size = layout.size;
    let mut writer = Writer::new(Vec::new(), layout).expect("memory has no I/O errors");
    while let Some(due) = writer.due() {
        let same = contents.tensors.entries().find(|entry| entry.name == due.name);
        writer.tensor(stored(bytes, &same.expect("it is of this file"))).expect("the size was checked");
    }
    let written = writer.finish().expect("all tensors were given");
    assert_eq!(written.len() as u64, size);
    let again = check(&written).expect("a written file opens");
    assert!(matches!(verify::footer(written.as_slice(), &again.contents), Ok(Some(_))));
    assert_eq!(&again.metadata, metadata);
    let before: Vec<_> = contents.tensors.entries().filter(kept).collect();
    assert_eq!(again.contents.tensors.len(), before.len());
    for (before, after) in before.iter().zip(again.contents.tensors.entries()) {
        assert_eq!((before.name, before.dtype, dims(before)), (after.name, after.dtype, dims(&after)));
        assert_eq!(stored(bytes, before), stored(&written, &after));
    }
}

/// Correct the checksums of header and footer, so that a mutation reaches the check that it is meant for.
pub fn sign(bytes: &mut [u8]) {
    if let Some(header) = bytes.first_chunk::<64>() {
        let checksum = apr_format::internal::v2::header::checksum(header);
        bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Some((rest, footer)) = bytes.split_last_chunk_mut::<4>()
        && rest.len() >= 64
    {
        let computed =
            apr_format::internal::crc::crc32(&*rest, rest.len() as u64).expect("memory has no I/O errors");
        *footer = computed.to_le_bytes();
    }
}

/// A replacement for a number.
#[derive(Debug, Arbitrary)]
pub enum Number {
    /// The number plus this.
    Near(i8),
    /// A power of two.
    Power(u8),
    /// One less than a power of two.
    BelowPower(u8),
    /// This number.
    Exact(u64),
}

impl Number {
    /// Replace the little-endian field of `N` bytes at a place.
    pub fn replace<const N: usize>(&self, bytes: &mut [u8], at: usize) {
        let Some(field) = bytes.get(at..at + N) else { return };
        let mut old = [0; 8];
        old[..N].copy_from_slice(field);
        let old = u64::from_le_bytes(old);
        let new = match *self {
            Self::Near(by) => old.wrapping_add_signed(by.into()),
            Self::Power(shift) => 1 << (shift % 64),
            Self::BelowPower(shift) => u64::MAX >> (shift % 64),
            Self::Exact(value) => value,
        };
        put(bytes, at, &new.to_le_bytes()[..N]);
    }
}

/// Replace bytes, unless the file was cut before them.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// Return a small number as a size in memory.
///
/// # Panics
/// If it is not small.
#[must_use]
pub fn size(n: u64) -> usize {
    usize::try_from(n).expect("small")
}
