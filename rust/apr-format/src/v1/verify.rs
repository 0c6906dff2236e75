//! The report of a version 1 file.

use super::{read::Opened, seal::hex};
use crate::{
    contents::Contents,
    error::{Error, Part},
    verify::{Check, failed, passed},
};

/// The parts of a file, in the order in which they are checked.
pub const PARTS: &[Part] = &[
    Part::Magic,
    Part::Header,
    Part::Footer,
    Part::Signature,
    Part::Metadata,
    Part::Encryption,
    Part::Payload,
    Part::Index,
];

/// Return the checks of an opened file. `payload` is the outcome of decompressing it.
#[must_use]
pub fn checks(contents: &Contents, opened: &Opened, payload: Result<(), &Error>) -> Vec<Check> {
    let header = &opened.header;
    let (major, minor) = header.version;
    let crc = contents.footer.map_or(0, |(_, crc)| crc);
    let mut checks = vec![
        passed(Part::Magic, format!("APRN, version {major}.{minor}")),
        passed(Part::Header, format!("no checksum of its own, flags {:#04x}", header.flags)),
        passed(Part::Footer, format!("CRC32 {crc:#010x} of all bytes before it")),
        signature(opened),
        passed(Part::Metadata, format!("{} bytes", header.metadata_size)),
    ];
    if header.is_encrypted() {
        checks.push(match opened.decrypted_with() {
            Some(key) => passed(Part::Encryption, format!("decrypted with the {key}")),
            None => unknown(Part::Encryption, "not checked: there is no password or recipient key".into()),
        });
    }
    checks.push(match payload {
        _ if opened.is_locked() => unknown(Part::Payload, "not checked: the payload is encrypted".into()),
        Ok(()) => {
            let (size, how) = (header.uncompressed_size, header.compression.name());
            passed(Part::Payload, format!("{size} bytes, compression {how}"))
        }
        Err(error) => Check { part: Part::Payload, ..failed(Part::Payload, error) },
    });
    checks.push(match &opened.not_described {
        Some(why) => unknown(Part::Index, format!("no tensors: {why}")),
        None => passed(Part::Index, format!("{} tensors described", contents.tensors.len())),
    });
    checks
}

fn signature(opened: &Opened) -> Check {
    match opened.signer {
        None => unknown(Part::Signature, "the file is not signed".into()),
        Some(signer) => {
            let by = hex(&signer.public_key);
            passed(
                Part::Signature,
                if signer.is_trusted {
                    format!("by the trusted key {by}")
                } else {
                    format!(
                        "integrity only, by the key {by} from the file itself; pass a trusted key to check who signed it"
                    )
                },
            )
        }
    }
}

fn unknown(part: Part, detail: String) -> Check {
    Check { passed: None, ..passed(part, detail) }
}
