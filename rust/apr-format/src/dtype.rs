//! The dtypes of the format: their ids, their names, and the size of a tensor.

use std::fmt;

/// Values in a block of GGML's K-quants.
pub const K_BLOCK: u64 = 256;
/// Values in a block of q4, which is APR's own.
pub const Q4_BLOCK: u64 = 32;
/// Bytes of a q4 block: an f16 scale and 16 bytes of nibbles.
pub const Q4_BYTES: u64 = 18;
/// Bytes of a `q4_k` block.
pub const Q4_K_BYTES: u64 = 144;
/// Bytes of a `q6_k` block.
pub const Q6_K_BYTES: u64 = 210;
/// Bytes of the scale before the values of a q8 tensor.
pub const Q8_SCALE: u64 = 4;

/// The element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE double precision.
    F64,
    /// Signed integer, 32 bits.
    I32,
    /// Signed integer, 64 bits.
    I64,
    /// Signed integer, 8 bits.
    I8,
    /// Unsigned integer, 8 bits.
    U8,
    /// APR's q4: blocks of 32 values of 4 bits under one f16 scale.
    Q4,
    /// APR's q8: values of 8 bits under one f32 scale for the tensor.
    Q8,
    /// GGML's `Q4_K`: blocks of 256 values.
    Q4K,
    /// GGML's `Q6_K`: blocks of 256 values.
    Q6K,
}

impl Dtype {
    /// Every dtype, in the order of the format's table.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F64,
        Self::I32,
        Self::I64,
        Self::I8,
        Self::U8,
        Self::Q4,
        Self::Q8,
        Self::Q4K,
        Self::Q6K,
    ];

    /// Return the dtype of an id in a tensor index. Older writers used 2 for bf16, 8 for q4 and 9 for q8.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 | 30 => Self::Bf16,
            3 => Self::F64,
            4 => Self::I32,
            5 => Self::I64,
            6 => Self::I8,
            7 => Self::U8,
            8 | 128 => Self::Q4,
            9 | 129 => Self::Q8,
            12 => Self::Q4K,
            14 => Self::Q6K,
            _ => return None,
        })
    }

    /// Return the id in the index of written files.
    #[must_use]
    pub fn id(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
            Self::F64 => 3,
            Self::I32 => 4,
            Self::I64 => 5,
            Self::I8 => 6,
            Self::U8 => 7,
            Self::Q4 => 128,
            Self::Q8 => 129,
            Self::Q4K => 12,
            Self::Q6K => 14,
        }
    }

    /// Return the name, such as `"bf16"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::Q4 => "q4",
            Self::Q8 => "q8",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Return the dtype of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Return the bytes of one value; `None` for a quantized dtype, whose values share bytes.
    #[must_use]
    pub fn itemsize(self) -> Option<u64> {
        match self {
            Self::F64 | Self::I64 => Some(8),
            Self::F32 | Self::I32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::I8 | Self::U8 => Some(1),
            Self::Q4 | Self::Q8 | Self::Q4K | Self::Q6K => None,
        }
    }

    /// Whether the values must be dequantized before use.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.itemsize().is_none()
    }

    /// Return the bytes of one block of a K-quant; `None` for other dtypes.
    pub(crate) fn k_block_bytes(self) -> Option<u64> {
        match self {
            Self::Q4K => Some(Q4_K_BYTES),
            Self::Q6K => Some(Q6_K_BYTES),
            _ => None,
        }
    }

    /// Return the size in bytes of a tensor with these dimensions; `None` on overflow.
    ///
    /// The rows of K-quants of two dimensions are padded to whole blocks.
    #[must_use]
    pub fn nbytes(self, dims: &[u64]) -> Option<u64> {
        let values = count(dims)?;
        match self {
            Self::Q4 => values.div_ceil(Q4_BLOCK).checked_mul(Q4_BYTES),
            Self::Q8 => values.checked_add(Q8_SCALE),
            Self::Q4K | Self::Q6K => match dims {
                [rows, columns] => rows.checked_mul(columns.div_ceil(K_BLOCK))?,
                _ => values.div_ceil(K_BLOCK),
            }
            .checked_mul(self.k_block_bytes()?),
            _ => values.checked_mul(self.itemsize()?),
        }
    }

    /// Return the size in bytes of a tensor whose K-quant rows are not padded: `ceil(n / 256)` blocks for `n` values.
    #[must_use]
    pub fn nbytes_flat(self, dims: &[u64]) -> Option<u64> {
        match self.k_block_bytes() {
            Some(bytes) => count(dims)?.div_ceil(K_BLOCK).checked_mul(bytes),
            None => self.nbytes(dims),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Return the number of values of a tensor with these dimensions.
///
/// It is `None` if so many values of 8 bytes would be larger than a signed 64-bit size. The check leaves zeros out: `NumPy`
/// refuses such shapes too.
#[must_use]
pub fn count(dims: &[u64]) -> Option<u64> {
    const LARGEST: u64 = i64::MAX as u64 / 8;
    let product = dims
        .iter()
        .filter(|&&dim| dim != 0)
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim).filter(|&n| n <= LARGEST))?;
    Some(if dims.contains(&0) { 0 } else { product })
}
