//! Decompression to exactly the size that a file declares.
//!
//! A declared size that the compressed bytes contradict is refused before memory is allocated for it.

#[cfg(feature = "v1")]
use zstd::{bulk::Decompressor, zstd_safe};

#[cfg(feature = "v1")]
use crate::error::{Error, Part, Result, Rule};

/// The largest size that is decompressed, a limit of the format: an LZ4 file of 4 MiB can declare this much.
pub const MAX_UNPACKED: u64 = 1 << 30;
/// An LZ4 block decompresses to at most this many times its size: each byte of a match length stands for 255 bytes.
#[cfg(feature = "v1")]
const LZ4_RATIO: usize = 255;

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// No compression.
    Plain,
    /// One LZ4 block.
    Lz4,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// Return the name that messages use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Lz4 => "LZ4",
            Self::Zstd => "zstd",
        }
    }
}

#[cfg(feature = "v1")]
impl Codec {
    /// Check, without decompressing, that `packed` can hold `size` bytes. `offset` is its place in the file.
    ///
    /// # Errors
    /// [`Rule::Compressed`] if it cannot.
    pub fn check(self, packed: &[u8], size: usize, offset: u64) -> Result<()> {
        let wrong = |what| Err(self.wrong(offset, what));
        match self {
            Self::Plain if packed.len() != size => {
                wrong(format!("{} bytes, but the file declares {size}", packed.len()))
            }
            Self::Lz4 if size > packed.len().saturating_mul(LZ4_RATIO) => {
                wrong(format!("{} bytes cannot hold the {size} that the file declares", packed.len()))
            }
            Self::Zstd => match zstd_safe::get_frame_content_size(packed) {
                Ok(Some(content)) if content != size as u64 => {
                    wrong(format!("the frame holds {content} bytes, but the file declares {size}"))
                }
                // A frame need not store its content size: decompressing it decides.
                Ok(_) => Ok(()),
                Err(_) => wrong("not a zstd frame".into()),
            },
            _ => Ok(()),
        }
    }

    /// Decompress all of `packed` and fill all of `out`. `offset` is the place of `packed` in the file.
    ///
    /// # Errors
    /// [`Rule::Compressed`] for invalid data, and for data that give more or fewer bytes.
    pub fn unpack(self, packed: &[u8], out: &mut [u8], offset: u64) -> Result<()> {
        self.check(packed, out.len(), offset)?;
        let size = match self {
            Self::Plain => {
                out.copy_from_slice(packed);
                Ok(out.len())
            }
            Self::Lz4 => lz4_flex::block::decompress_into(packed, out).map_err(|error| error.to_string()),
            Self::Zstd => unpack_zstd(packed, out),
        };
        match size {
            Ok(size) if size == out.len() => Ok(()),
            Ok(size) => Err(self.wrong(offset, format!("{size} bytes, but the file declares {}", out.len()))),
            Err(reason) => {
                let what = format!("cannot decompress it to {} bytes: {reason}", out.len());
                Err(self.wrong(offset, what))
            }
        }
    }

    fn wrong(self, offset: u64, what: String) -> Error {
        Rule::Compressed { codec: self.name(), what }.at(Part::Packing, offset)
    }
}

#[cfg(feature = "v1")]
fn unpack_zstd(packed: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
    // The zstd library would continue with a second frame.
    let frame = zstd_safe::find_frame_compressed_size(packed).map_err(zstd_safe::get_error_name)?;
    if frame != packed.len() {
        return Err(format!("{} bytes after the frame", packed.len().saturating_sub(frame)));
    }
    // In one call: a streaming decoder would allocate a window, whose size the frame chooses.
    let mut context = Decompressor::new().map_err(|error| error.to_string())?;
    context.decompress_to_buffer(packed, out).map_err(|error| error.to_string())
}

#[cfg(all(test, feature = "v1"))]
mod tests {
    use super::*;

    /// "abcd" as the literals of an LZ4 block, and as a raw block of a zstd frame that stores its size.
    const LZ4: &[u8] = b"\x40abcd";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd\x20\x04\x21\0\0abcd";

    fn unpacked(codec: Codec, packed: &[u8], size: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; size];
        codec.unpack(packed, &mut out, 9).map(|()| out)
    }

    #[test]
    fn exactly_the_declared_size_is_decompressed() {
        for (codec, packed) in [(Codec::Plain, &b"abcd"[..]), (Codec::Lz4, LZ4), (Codec::Zstd, ZSTD)] {
            assert_eq!(unpacked(codec, packed, 4).unwrap(), b"abcd");
            for size in [0, 3, 5, 1 << 20] {
                assert_eq!(unpacked(codec, packed, size).unwrap_err().offset(), Some(9), "{codec:?} {size}");
            }
            assert!(unpacked(codec, &[packed, b"x"].concat(), 4).is_err(), "{codec:?}");
            assert!(unpacked(codec, &packed[..packed.len() - 1], 4).is_err(), "{codec:?}");
            assert!(unpacked(codec, &[], 4).is_err(), "{codec:?}");
        }
    }

    #[test]
    fn a_second_frame_is_refused() {
        assert!(unpacked(Codec::Zstd, &[ZSTD, ZSTD].concat(), 8).is_err());
    }
}
