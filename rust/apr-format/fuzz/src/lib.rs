//! What several targets ask of a file.

use apr_format::{
    container::{self, Container},
    dtype::Dtype,
    error::{Error, Kind, Part},
    quant,
    source::{Source, read_vec},
    keys::Keys,
    v2::{
        align,
        header::flags,
        index::Tensor,
        layout::{Layout, Spec},
        read::Contents,
        verify::{self, Findings},
        write::Writer,
    },
    watch::Watch,
};

use libfuzzer_sys::arbitrary::{self, Arbitrary};

/// Values that one input may ask for: a q8 tensor of a gigabyte would only be slow.
const MOST: u64 = 1 << 20;

/// Let the fuzzer's own thread do rayon's work: handing it over would take longer than the work.
///
/// # Panics
/// When called twice.
pub fn on_this_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("no pool before this one");
}

/// Open and verify, in whatever form; what opens keeps every promise of the format, and its every tensor can
/// be read. Gives what a v2 file holds, and its metadata, where they are right.
///
/// # Panics
/// On a finding.
pub fn look(bytes: &[u8]) -> Option<(Contents, String)> {
    look_with(bytes, &Keys::default())
}

/// As [`look`], with keys.
///
/// # Panics
/// On a finding.
pub fn look_with(bytes: &[u8], keys: &Keys) -> Option<(Contents, String)> {
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
            let v1 = container.v1().expect("of the other forms, what opens is unpacked");
            assert!(
                v1.is_locked() || findings.checks.iter().any(|check| check.passed == Some(false)),
                "{error}"
            );
            return None;
        }
    };
    let size = image.size().expect("memory has no I/O errors");
    let is_v2 = contents.header.version.0 == 2;
    if container.v1().is_none() {
        check_places(contents, size, is_v2);
    }
    for tensor in contents.tensors.iter() {
        read_tensor(&image, contents, &tensor);
    }
    let footer = container.check_footer(&Watch::default());
    let check = findings.checks.iter().find(|check| check.part == Part::Footer);
    assert_eq!(
        check.expect("the footer's check").passed,
        footer.map_or(Some(false), |crc| crc.map(|_| true))
    );
    metadata.filter(|_| is_v2).map(|metadata| (contents.clone(), metadata))
}

/// One line that says where; about a key, it may have no place.
fn check_error(error: &Error, is_about_keys: bool) {
    let line = error.to_string();
    assert!(!line.contains(['\n', '\r']), "{line:?}");
    assert!(error.offset().is_some() || is_about_keys, "{line}");
    assert!(error.part().is_some(), "{line}");
}

/// Every JSON parser reads what passes; what does not is a finding.
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
    assert_eq!(contents.header.tensor_count as usize, contents.tensors.len());
    let names: Vec<_> = contents.tensors.names().collect();
    assert_eq!(names.len(), contents.tensors.len());
    assert!(names.is_sorted_by(|a, b| a < b));
    assert!(names.iter().all(|name| !name.is_empty() && !name.contains('\0')));
}

/// `size` is that of the image in which offsets count.
fn check_places(contents: &Contents, size: u64, padded: bool) {
    let header = &contents.header;
    assert!(header.metadata_end() <= header.tensor_index_offset);
    assert!(header.tensor_index_offset <= header.data_offset);
    let footer = contents.footer.map_or(size, |(offset, _)| offset);
    let mut end = header.data_offset;
    let mut by_place: Vec<_> = contents.tensors.iter().filter(|tensor| tensor.nbytes > 0).collect();
    by_place.sort_by_key(|tensor| tensor.offset);
    for tensor in by_place {
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

/// The stored bytes of a tensor.
///
/// # Panics
/// Where they are not in the file.
#[must_use]
pub fn stored<'a>(bytes: &'a [u8], tensor: &Tensor) -> &'a [u8] {
    let [start, size] =
        [tensor.offset, tensor.nbytes].map(|n| usize::try_from(n).expect("a place in memory"));
    &bytes[start..start + size]
}

/// Write what was read anew: the same names, dtypes, dims, bytes and metadata come back.
///
/// # Panics
/// On a finding.
pub fn round_trip(bytes: &[u8], contents: &Contents, metadata: &str) {
    // A tied head and flat K-quants are read, and written in another form.
    let kept = |tensor: &Tensor| tensor.dtype.nbytes(&tensor.dims) == Some(tensor.nbytes);
    let spec = |tensor: Tensor| Spec { name: tensor.name, dtype: tensor.dtype, dims: tensor.dims };
    let specs: Vec<_> = contents.tensors.iter().filter(kept).map(spec).collect();
    let flags = contents.header.flags & !flags::NEVER_WRITTEN;
    let layout = Layout::new(specs, metadata, flags).expect("what was read can be written");
    let size = layout.size;
    let mut writer = Writer::new(Vec::new(), layout).expect("memory has no I/O errors");
    while let Some(due) = writer.due() {
        let given = contents.tensor(&due.name).expect("it comes from there");
        writer.tensor(stored(bytes, &given)).expect("the size was checked");
    }
    let written = writer.finish().expect("all tensors were given");
    assert_eq!(written.len() as u64, size);
    let (again, kept_metadata) = look(&written).expect("what is written opens");
    assert!(matches!(verify::footer(written.as_slice(), &again), Ok(Some(_))));
    assert_eq!(kept_metadata, metadata);
    let before = contents.tensors.iter().filter(kept);
    assert_eq!(again.tensors.len(), contents.tensors.iter().filter(kept).count());
    for (before, after) in before.zip(again.tensors.iter()) {
        assert_eq!((&before.name, before.dtype, &before.dims), (&after.name, after.dtype, &after.dims));
        assert_eq!(stored(bytes, &before), stored(&written, &after));
    }
}

/// Make the header's and the footer's checksum right, so that what lies is looked at.
pub fn sign(bytes: &mut [u8]) {
    if let Some(header) = bytes.first_chunk::<64>() {
        let checksum = apr_format::v2::header::checksum(header);
        bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Some((rest, footer)) = bytes.split_last_chunk_mut::<4>()
        && rest.len() >= 64
    {
        let computed = apr_format::crc::crc32(&*rest, rest.len() as u64).expect("memory has no I/O errors");
        *footer = computed.to_le_bytes();
    }
}

/// What replaces an honest number.
#[derive(Debug, Arbitrary)]
pub enum Number {
    /// So much more or less.
    Near(i8),
    /// A power of two.
    Power(u8),
    /// One less than a power of two.
    BelowPower(u8),
    /// Any.
    Exact(u64),
}

impl Number {
    /// Lie in the field of `N` bytes at this place, little-endian.
    pub fn replace<const N: usize>(&self, bytes: &mut [u8], at: usize) {
        let Some(field) = bytes.get(at..at + N) else { return };
        let mut honest = [0; 8];
        honest[..N].copy_from_slice(field);
        let honest = u64::from_le_bytes(honest);
        let lie = match *self {
            Self::Near(by) => honest.wrapping_add_signed(by.into()),
            Self::Power(shift) => 1 << (shift % 64),
            Self::BelowPower(shift) => u64::MAX >> (shift % 64),
            Self::Exact(value) => value,
        };
        put(bytes, at, &lie.to_le_bytes()[..N]);
    }
}

/// Replace bytes; nothing, where a cut has taken the place away.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// A small number as a size in memory.
///
/// # Panics
/// Where it is none.
#[must_use]
pub fn size(n: u64) -> usize {
    usize::try_from(n).expect("small")
}
