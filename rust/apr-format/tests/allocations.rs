//! Opening a version 2 file, reading its metadata and verifying it allocate at most twice its size, whatever it
//! declares. If one string with escapes is most of the file, it is four times: serde unescapes the string into a buffer
//! that doubles.

use std::{fmt::Write as _, fs::File, io::Write as _};

use apr_format::internal::{
    container,
    v2::{header::Header, read},
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that do not grow with the file: the windows of the reading threads, and what rayon allocates.
const BUFFERS: usize = 1 << 20;

/// Return an entry of the index: a tensor of `count` f32 values.
fn entry(name: &str, count: u64, offset: u64) -> Vec<u8> {
    let mut bytes = u16::try_from(name.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend([0, 1]);
    for number in [count, offset, 4 * count] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// Return entries of tensors with the same number of values.
fn entries(count: u32, values: u64) -> Vec<u8> {
    let step = (4 * values).next_multiple_of(64);
    (0..count).flat_map(|i| entry(&format!("{i:05x}"), values, u64::from(i) * step)).collect()
}

/// Return a file that declares any number of tensors.
fn file(metadata: &[u8], tensor_count: u32, index: &[u8], data: usize) -> Vec<u8> {
    let align = |size: usize| size.next_multiple_of(64);
    let index_offset = align(64 + metadata.len());
    let data_offset = align(index_offset + index.len());
    let header = Header {
        magic: *b"APR\0",
        version: (2, 0),
        flags: 1 << 10,
        tensor_count,
        metadata_offset: 64,
        metadata_size: u32::try_from(metadata.len()).unwrap(),
        tensor_index_offset: index_offset as u64,
        data_offset: data_offset as u64,
        checksum: 0,
        reserved: [0; 20],
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(metadata);
    bytes.resize(index_offset, 0);
    bytes.extend(index);
    bytes.resize(data_offset + data, 0);
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// Return the most bytes that are allocated at a time by opening and by verifying, and whether the file and its metadata
/// can be read.
fn peak(bytes: &[u8]) -> (usize, bool) {
    let mut on_disk = tempfile::tempfile().unwrap();
    on_disk.write_all(bytes).unwrap();
    let most = |act: &dyn Fn(&File) -> bool| {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let opened = act(&on_disk);
        (MEMORY.peak_usage() - before, opened)
    };
    let (opening, opened) =
        most(&|file| read::open(file).is_ok_and(|(_, contents)| contents.metadata(file).is_ok()));
    let (verifying, _) = most(&|file| container::verify(file).unwrap().opened);
    (opening.max(verifying), opened)
}

// One test: what a second one allocated at the same time would be counted too.
#[test]
fn no_file_costs_more_than_its_size_allows() {
    let mut values = String::from("{\"a\":[\"\"");
    for i in 0..1_999_997 {
        write!(values, ",{}", i % 10).unwrap();
    }
    values += "]}";
    let escapes = format!("{{\"a\":\"{}\"}}", "\\u00e9x".repeat(2 << 20));
    let one_escape = format!("{{\"a\":\"{0}\\n{0}\"}}", "x".repeat(8 << 20));
    let text = |json: &str| file(json.as_bytes(), 0, b"", 0);
    let cases = [
        ("100 000 tensors", file(b"{}", 100_000, &entries(100_000, 16), 6_400_000), true),
        ("100 000 tensors without values", file(b"{}", 100_000, &entries(100_000, 0), 0), true),
        ("more tensors than entries", file(b"{}", 300_000, &entries(200_000, 0), 0), false),
        ("entries of zeros", file(b"{}", 400_000, &vec![0; 21 * 400_000], 0), false),
        ("2 million values", text(&values), true),
        ("a string of escapes", text(&escapes), true),
        ("a string with one escape", text(&one_escape), true),
        ("wrong after a string of escapes", text(&escapes.replace('}', ",}")), false),
        ("metadata that are not UTF-8", file(&vec![0xff; 16 << 20], 0, b"", 0), false),
        ("one large tensor", file(b"{}", 1, &entry("a", 4 << 20, 0), 16 << 20), true),
    ];
    let mut failures = Vec::new();
    for (name, bytes, opens) in cases {
        let times = if name.contains("string") { 4 } else { 2 };
        let (peak, opened) = peak(&bytes);
        assert_eq!(opened, opens, "{name}");
        let line = format!("{name}: {peak} bytes for a file of {}", bytes.len());
        println!("{line}");
        if peak > times * bytes.len() + BUFFERS {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
