//! v1 files made field by field, signed or encrypted for a recipient among them: an honest one opens and gives
//! back the tensors that its metadata describe; one with any lies, under a right checksum, keeps its promises or
//! is refused.
#![no_main]

use std::{collections::BTreeMap, sync::LazyLock};

use aes_gcm::{Aes256Gcm, KeyInit, Nonce, aead::AeadInOut};
use apr_format::{
    container::Container,
    source::read_vec,
    keys::{Keys, Unlock},
};
use apr_format_fuzz::{Number, look_with, on_this_thread, put};
use ed25519_dalek::{Signer, SigningKey};
use hkdf::Hkdf;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

const ENCRYPTED: u8 = 1;
const SIGNED: u8 = 2;
/// The recipient's secret key, the sender's, and the author's.
const RECIPIENT: [u8; 32] = [1; 32];
const SENDER: [u8; 32] = [2; 32];
static AUTHOR: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[3; 32]));
/// The sender's public key and the start of the recipient's, which stand before what is encrypted; its cipher.
static SEALED: LazyLock<(Vec<u8>, Aes256Gcm)> = LazyLock::new(|| {
    let [recipient, sender] = [RECIPIENT, SENDER].map(StaticSecret::from);
    let [to, from] = [&recipient, &sender].map(PublicKey::from);
    let mut key = [0; 32];
    let shared = sender.diffie_hellman(&to);
    Hkdf::<Sha256>::new(None, shared.as_bytes()).expand(b"apr-v1-encrypt", &mut key).expect("32 bytes");
    ([from.as_bytes().as_slice(), &to.as_bytes()[..8]].concat(), Aes256Gcm::new((&key).into()))
});

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    model_type: u16,
    quality: u8,
    metadata: Metadata<'a>,
    /// Tensors described in the metadata; without any, the payload is `data`.
    tensors: BTreeMap<&'a str, Vec<u8>>,
    /// Described under `custom` rather than at the top.
    custom: bool,
    data: &'a [u8],
    compression: Compression,
    /// Flags of v1: [`SIGNED`], [`ENCRYPTED`], and whether the keys are given.
    sealed: u8,
    with_keys: bool,
    lies: Vec<Lie>,
}

#[derive(Debug, Arbitrary)]
enum Metadata<'a> {
    Packed(BTreeMap<&'a str, Value1<'a>>),
    Json(BTreeMap<&'a str, Value1<'a>>),
    Raw(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
enum Value1<'a> {
    Null,
    Number(i64),
    Float(f64),
    Text(&'a str),
    List(Vec<Option<bool>>),
}

#[derive(Debug, Arbitrary, Clone, Copy)]
enum Compression {
    None,
    Zstd,
    ZstdMax,
    Lz4,
}

#[derive(Debug, Arbitrary)]
enum Lie {
    Version(u8, u8),
    MetadataSize(Number),
    PayloadSize(Number),
    UncompressedSize(Number),
    Compression(u8),
    Flags(u8),
    Reserved(u8),
    /// Of what the payload starts with before it is compressed.
    Count(Number),
    /// Any byte before the checksum is made right.
    Byte(u16, u8),
    Cut(u16),
    Append(u8),
    Damage(u16, u8),
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let Some((bytes, expected)) = make(&input) else { return };
    let mut keys = Keys::default();
    if input.with_keys {
        let unlock = Unlock::Recipient(RECIPIENT.into());
        keys.unlock = (input.sealed & ENCRYPTED != 0).then_some(unlock);
        keys.trusted = (input.sealed & SIGNED != 0).then(|| AUTHOR.verifying_key().to_bytes());
    }
    look_with(&bytes, &keys);
    if !input.lies.is_empty() || matches!(input.metadata, Metadata::Raw(_)) {
        return;
    }
    let opened = match Container::open_with(bytes.as_slice(), &keys) {
        Ok(opened) => opened,
        Err(error) => panic!("an honest file is refused: {error}"),
    };
    let v1 = opened.v1().expect("it is one");
    assert_eq!(v1.signer.is_some(), input.sealed & SIGNED != 0);
    assert_eq!(v1.signer.is_some_and(|signer| signer.is_trusted), keys.trusted.is_some());
    if v1.is_locked() {
        assert!(keys.unlock.is_none() && input.sealed & ENCRYPTED != 0);
        assert!(opened.image().is_err());
        return;
    }
    let image = match opened.image() {
        Ok(image) => image,
        Err(error) => panic!("an honest payload is refused: {error}"),
    };
    let tensors: Vec<_> = opened.contents().tensors.iter().collect();
    assert_eq!(tensors.len(), expected.len());
    for (found, (name, dims, bytes)) in tensors.iter().zip(&expected) {
        assert_eq!((found.name.as_str(), &found.dims), (*name, dims));
        assert_eq!(&read_vec(&image, found.offset, found.nbytes).expect("its bytes are there"), bytes);
    }
});

type Tensor<'a> = (&'a str, Vec<u64>, Vec<u8>);

/// The file and its tensors; None where they are too many.
fn make<'a>(input: &Input<'a>) -> Option<(Vec<u8>, Vec<Tensor<'a>>)> {
    let data = if input.data.is_empty() { &[0] } else { input.data };
    let mut stream = data.iter().copied().cycle();
    let (mut shapes, mut values, mut tensors, mut total) = (Map::new(), Vec::new(), Vec::new(), 0_u64);
    for (name, dims) in &input.tensors {
        if name.is_empty() || name.len() > 256 || name.contains('\0') {
            continue;
        }
        let dims: Vec<_> = dims.iter().take(8).map(|&dim| u64::from(dim)).collect();
        let count = dims.iter().try_fold(1_u64, |count, &dim| count.checked_mul(dim));
        let count = count.filter(|&count| count < 1 << 12)?;
        shapes.insert((*name).into(), json!(dims));
        let bytes: Vec<_> = stream.by_ref().take(4 * usize::try_from(count).ok()?).collect();
        values.extend(&bytes);
        total += count;
        tensors.push((*name, dims, bytes));
    }
    let mut payload = if tensors.is_empty() {
        input.data.to_vec()
    } else {
        [total.to_le_bytes().as_slice(), &values].concat()
    };
    for lie in &input.lies {
        if let Lie::Count(number) = lie {
            number.replace::<8>(&mut payload, 0);
        }
    }
    let uncompressed = u32::try_from(payload.len()).ok()?;
    let packed = match input.compression {
        Compression::None => payload,
        Compression::Zstd => zstd::bulk::compress(&payload, 3).ok()?,
        Compression::ZstdMax => zstd::bulk::compress(&payload, 4).ok()?,
        Compression::Lz4 => {
            [uncompressed.to_le_bytes().as_slice(), &lz4_flex::block::compress(&payload)].concat()
        }
    };
    let stored = if input.sealed & ENCRYPTED == 0 { packed } else { encrypt(packed) };
    let metadata = input.metadata.bytes(shapes, input.custom);
    let mut bytes = b"APRN\x01\x00".to_vec();
    bytes.extend(input.model_type.to_le_bytes());
    for size in [metadata.len(), stored.len()] {
        bytes.extend(u32::try_from(size).ok()?.to_le_bytes());
    }
    bytes.extend(uncompressed.to_le_bytes());
    bytes.extend([input.compression as u8, input.sealed & (SIGNED | ENCRYPTED), input.quality % 101]);
    bytes.extend([0; 9]);
    bytes.extend(metadata);
    bytes.extend(stored);
    if input.sealed & SIGNED != 0 {
        let signature = AUTHOR.sign(&bytes).to_bytes();
        bytes.extend(signature);
        bytes.extend(AUTHOR.verifying_key().as_bytes());
    }
    for lie in &input.lies {
        lie.tell(&mut bytes);
    }
    let checksum = apr_format::crc::crc32(bytes.as_slice(), bytes.len() as u64).expect("no I/O errors");
    bytes.extend(checksum.to_le_bytes());
    for lie in &input.lies {
        if let &Lie::Damage(at, bits) = lie {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
    }
    Some((bytes, tensors))
}

/// For the recipient, under a nonce of zeros: it protects nothing.
fn encrypt(mut packed: Vec<u8>) -> Vec<u8> {
    let (head, cipher) = &*SEALED;
    let nonce = [0; 12];
    let tag = cipher
        .encrypt_inout_detached(&Nonce::from(nonce), b"", packed.as_mut_slice().into())
        .expect("a short text");
    [head, nonce.as_slice(), &packed, &tag].concat()
}

impl Metadata<'_> {
    fn bytes(&self, shapes: Map<String, Value>, custom: bool) -> Vec<u8> {
        let (Self::Packed(entries) | Self::Json(entries)) = self else {
            let Self::Raw(bytes) = self else { unreachable!("the third of three") };
            return bytes.to_vec();
        };
        let mut map: Map<_, _> =
            entries.iter().map(|(key, value)| ((*key).to_owned(), value.json())).collect();
        // Not the input's own: they would describe other tensors.
        map.remove("tensor_shapes");
        map.remove("custom");
        if !shapes.is_empty() && custom {
            map.insert("custom".into(), json!({"tensor_shapes": shapes}));
        } else if !shapes.is_empty() {
            map.insert("tensor_shapes".into(), shapes.into());
        }
        if matches!(self, Self::Json(_)) {
            return serde_json::to_vec(&map).expect("JSON");
        }
        rmp_serde::to_vec(&map).expect("MessagePack")
    }
}

impl Value1<'_> {
    fn json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Number(number) => (*number).into(),
            Self::Float(number) => (*number).into(), // null where JSON has no form for it
            Self::Text(text) => (*text).into(),
            Self::List(items) => items.iter().copied().collect(),
        }
    }
}

impl Lie {
    fn tell(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Version(major, minor) => put(bytes, 4, &[*major, *minor]),
            Self::MetadataSize(number) => number.replace::<4>(bytes, 8),
            Self::PayloadSize(number) => number.replace::<4>(bytes, 12),
            Self::UncompressedSize(number) => number.replace::<4>(bytes, 16),
            Self::Compression(id) => put(bytes, 20, &[*id]),
            Self::Flags(flags) => put(bytes, 21, &[*flags]),
            Self::Reserved(byte) => put(bytes, 23, &[*byte]),
            Self::Byte(at, byte) => {
                let at = usize::from(*at) % bytes.len().max(1);
                put(bytes, at, &[*byte]);
            }
            Self::Cut(count) => bytes.truncate(bytes.len().saturating_sub(usize::from(*count))),
            Self::Append(count) => bytes.resize(bytes.len() + usize::from(*count), 0),
            Self::Count(_) | Self::Damage(..) => {}
        }
    }
}
