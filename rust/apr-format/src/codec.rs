//! Decompression into memory of a declared size: never a byte more, and none where the size is a lie that shows.

use zstd::{bulk::Decompressor, zstd_safe};

use crate::error::{Error, Part, Result, Rule};

/// Largest size that is unpacked, whatever a file declares.
pub const MAX_UNPACKED: u64 = 1 << 30;
/// An LZ4 block of n bytes holds at most this many times n.
const LZ4_RATIO: usize = 255;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    Plain,
    /// One LZ4 block.
    Lz4,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// The name that people know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Lz4 => "LZ4",
            Self::Zstd => "zstd",
        }
    }

    /// Check what can be known without decompressing: that `packed` may hold `size` bytes. `offset` is
    /// where it stands in the file.
    ///
    /// # Errors
    /// [`Rule::Compressed`].
    pub fn check(self, packed: &[u8], size: usize, offset: u64) -> Result<()> {
        let wrong = |what| Err(self.wrong(offset, what));
        match self {
            Self::Plain if packed.len() != size => {
                wrong(format!("{} bytes, not the {size} that are declared", packed.len()))
            }
            Self::Lz4 if size > packed.len().saturating_mul(LZ4_RATIO) => {
                wrong(format!("{} bytes cannot hold the {size} that are declared", packed.len()))
            }
            Self::Zstd => match zstd_safe::get_frame_content_size(packed) {
                Ok(Some(found)) if found != size as u64 => {
                    wrong(format!("the frame holds {found} bytes, not the {size} that are declared"))
                }
                Ok(_) => Ok(()),
                Err(_) => wrong("not a zstd frame".into()),
            },
            _ => Ok(()),
        }
    }

    /// Decompress the whole of `packed` to exactly the bytes of `out`.
    ///
    /// # Errors
    /// [`Rule::Compressed`], also where there are more or fewer bytes.
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
            Ok(size) => {
                Err(self.wrong(offset, format!("{size} bytes, not the {} that are declared", out.len())))
            }
            Err(reason) => {
                let what = format!("it does not decompress to {} bytes: {reason}", out.len());
                Err(self.wrong(offset, what))
            }
        }
    }

    fn wrong(self, offset: u64, what: String) -> Error {
        Rule::Compressed { codec: self.name(), what }.at(Part::Packing, offset)
    }
}

fn unpack_zstd(packed: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
    // zstd itself would go on with a second frame.
    let frame = zstd_safe::find_frame_compressed_size(packed).map_err(zstd_safe::get_error_name)?;
    if frame != packed.len() {
        return Err(format!("{} bytes follow the frame", packed.len().saturating_sub(frame)));
    }
    // In one go: a window of its own, whose size the frame chooses, is never made.
    let mut context = Decompressor::new().map_err(|error| error.to_string())?;
    context.decompress_to_buffer(packed, out).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "abcd" as literals of an LZ4 block, and as a raw block of a zstd frame of known size.
    const LZ4: &[u8] = b"\x40abcd";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd\x20\x04\x21\0\0abcd";

    fn unpacked(codec: Codec, packed: &[u8], size: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; size];
        codec.unpack(packed, &mut out, 9).map(|()| out)
    }

    #[test]
    fn exactly_the_declared_bytes_come_out() {
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
