//! Opening and verifying a file of an older form allocate at most twice its size, whatever it declares, in addition to
//! what a compressed file decompresses to.

use std::{fmt::Write as _, fs::File, io::Write as _};

use apr_format::internal::container::{self, Container};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that do not grow with the file: the windows of the reading threads, and what rayon allocates.
const BUFFERS: usize = 1 << 20;

fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

fn json(index: &str, count: u32, data: usize) -> Vec<u8> {
    let mut bytes = b"APR1\x02\0\0\0{}".to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(sized(index.as_bytes()));
    bytes.resize(bytes.len() + data, 0);
    with_crc(bytes)
}

fn entries(count: u32, dim: u32) -> String {
    let mut text = String::from("[");
    for i in 0..count {
        let (comma, size) = (if i == 0 { "" } else { "," }, 4 * dim);
        let offset = i * size;
        write!(
            text,
            r#"{comma}{{"name":"{i:05}","dtype":"F32","shape":[{dim}],"offset":{offset},"size":{size}}}"#
        )
        .unwrap();
    }
    text + "]"
}

/// Return a version 1 file. `sizes` are those of the payload, stored and decompressed.
fn v1(metadata: &[u8], payload: &[u8], sizes: [u32; 2], compression: u8) -> Vec<u8> {
    let mut bytes = b"APRN\x01\0\x01\0".to_vec();
    bytes.extend(u32::try_from(metadata.len()).unwrap().to_le_bytes());
    bytes.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
    bytes.push(compression);
    bytes.resize(32, 0);
    bytes.extend(metadata);
    bytes.extend(payload);
    with_crc(bytes)
}

/// Return the most bytes that are allocated at a time by opening and by verifying, and whether the file opens.
fn peak(bytes: &[u8]) -> (usize, bool) {
    let mut on_disk = tempfile::tempfile().unwrap();
    on_disk.write_all(bytes).unwrap();
    let most = |act: &dyn Fn(&File) -> bool| {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let opened = act(&on_disk);
        (MEMORY.peak_usage() - before, opened)
    };
    let (opening, opened) = most(&|file| Container::open(file).is_ok());
    let (verifying, _) = most(&|file| container::verify(file).unwrap().opened);
    (opening.max(verifying), opened)
}

// One test: what a second one allocated at the same time would be counted too.
#[test]
fn no_file_of_an_older_form_costs_more_than_its_size_allows() {
    let large = vec![7; 8 << 20];
    let size = u32::try_from(large.len()).unwrap();
    let lz4 = [&[0xf0][..], &vec![0xff; (large.len() - 15) / 255], &[0], &large].concat();
    let array = [b"\x81\xa1a\xdd\0\x1e\x84\x7e".to_vec(), vec![0xc0; 1_999_998]].concat();
    let numbers = String::from("[") + &"7,".repeat(1_000_000) + "7]";
    let cases = [
        ("100 000 tensors", json(&entries(100_000, 16), 100_000, 6_400_000), true),
        ("100 000 tensors without values", json(&entries(100_000, 0), 100_000, 0), true),
        ("a wrong number of tensors", json(&entries(10, 0), u32::MAX, 0), false),
        ("an index of numbers", json(&numbers, 1_000_001, 0), false),
        ("a wrapper with a wrong length", [&b"APR2\x01\0\0\0\x30\0\0\0\x30"[..], &large].concat(), false),
        ("a payload", v1(b"{}", &large, [size; 2], 0), true),
        ("an LZ4 payload", v1(b"{}", &sized(&lz4), [size + 32901, size], 3), false),
        ("a payload with a wrong size", v1(b"{}", &large, [size, 1 << 30], 1), true),
        ("metadata of 2 million values", v1(&array, b"", [0; 2], 0), true),
        (
            "metadata of one text",
            v1(&[b"\x81\xa1a\xdb\0\x80\0\0".to_vec(), large.clone()].concat(), b"", [0; 2], 0),
            true,
        ),
    ];
    let mut failures = Vec::new();
    for (name, bytes, opens) in cases {
        // MessagePack becomes JSON of at most 64 MiB, in a buffer that doubles. There, a byte takes up to six.
        let times = if name.starts_with("metadata") { 15 } else { 2 };
        let (peak, opened) = peak(&bytes);
        let line = format!("{name}: {peak} bytes for a file of {}", bytes.len());
        println!("{line}");
        assert_eq!(opened, opens, "{name}: {:?}", container::verify(bytes.as_slice()).unwrap().checks.last());
        if peak > times * bytes.len() + BUFFERS {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
