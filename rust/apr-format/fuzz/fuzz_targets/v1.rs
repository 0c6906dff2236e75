//! Build version 1 files field by field, also signed ones and encrypted ones. A valid one must open and contain the tensors
//! that its metadata describe; one with mutations, under a correct checksum, must be refused or keep the rules of the
//! format.
#![no_main]

use std::{collections::BTreeMap, sync::LazyLock};

use aes_gcm::{Aes256Gcm, KeyInit, Nonce, aead::AeadInOut};
use apr_format::{
    Keys, Unlock,
    internal::{container::Container, source::read_vec},
};
use apr_format_fuzz::{Number, check_with, on_this_thread, put};
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
/// The secret key of the recipient.
const RECIPIENT: [u8; 32] = [1; 32];
/// The secret key of the sender.
const SENDER: [u8; 32] = [2; 32];
/// The key that signs.
static AUTHOR: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[3; 32]));
/// The bytes before an encrypted payload (the public key of the sender, the start of the recipient's) and its cipher.
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
    /// The tensors that the metadata describe. Without any, the payload is `data`.
    tensors: BTreeMap<&'a str, Vec<u8>>,
    /// Whether they are described under `custom` instead of at the top.
    custom: bool,
    data: &'a [u8],
    compression: Compression,
    /// The flags [`SIGNED`] and [`ENCRYPTED`].
    sealed: u8,
    /// Whether the file is opened with keys.
    with_keys: bool,
    mutations: Vec<Mutation>,
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
enum Mutation {
    Version(u8, u8),
    MetadataSize(Number),
    PayloadSize(Number),
    UncompressedSize(Number),
    Compression(u8),
    Flags(u8),
    Reserved(u8),
    /// The number of values, before the payload is compressed.
    Count(Number),
    /// Any byte, before the checksum is computed.
    Byte(u16, u8),
    Cut(u16),
    Append(u8),
    /// Any byte, after the checksum was computed.
    Damage(u16, u8),
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let Some((bytes, expected)) = build(&input) else { return };
    let mut keys = Keys::default();
    if input.with_keys {
        let unlock = Unlock::Recipient(RECIPIENT.into());
        keys.unlock = (input.sealed & ENCRYPTED != 0).then_some(unlock);
        keys.trusted = (input.sealed & SIGNED != 0).then(|| AUTHOR.verifying_key().to_bytes());
    }
    check_with(&bytes, &keys);
    if !input.mutations.is_empty() || matches!(input.metadata, Metadata::Raw(_)) {
        return;
    }
    let opened = match Container::open_with(bytes.as_slice(), &keys) {
        Ok(opened) => opened,
        Err(error) => panic!("a valid file is refused: {error}"),
    };
    let v1 = opened.v1().expect("a version 1 file");
    assert_eq!(v1.signer.is_some(), input.sealed & SIGNED != 0);
    assert_eq!(v1.signer.is_some_and(|signer| signer.is_trusted), keys.trusted.is_some());
    if v1.is_locked() {
        assert!(keys.unlock.is_none() && input.sealed & ENCRYPTED != 0);
        assert!(opened.image().is_err());
        return;
    }
    let image = match opened.image() {
        Ok(image) => image,
        Err(error) => panic!("a valid payload is refused: {error}"),
    };
    let tensors: Vec<_> = opened.contents().tensors.entries().collect();
    assert_eq!(tensors.len(), expected.len());
    for (entry, (name, dims, bytes)) in tensors.iter().zip(&expected) {
        assert_eq!((entry.name, &entry.dims().collect()), (*name, dims));
        assert_eq!(&read_vec(&image, entry.offset, entry.nbytes).expect("its bytes are there"), bytes);
    }
});

type Tensor<'a> = (&'a str, Vec<u64>, Vec<u8>);

/// Build a file and return it with its tensors; `None` if they have too many values.
fn build<'a>(input: &Input<'a>) -> Option<(Vec<u8>, Vec<Tensor<'a>>)> {
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
    for mutation in &input.mutations {
        if let Mutation::Count(number) = mutation {
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
    for mutation in &input.mutations {
        mutation.apply(&mut bytes);
    }
    let checksum =
        apr_format::internal::crc::crc32(bytes.as_slice(), bytes.len() as u64).expect("no I/O errors");
    bytes.extend(checksum.to_le_bytes());
    for mutation in &input.mutations {
        if let &Mutation::Damage(at, bits) = mutation {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
    }
    Some((bytes, tensors))
}

/// Encrypt for the recipient. The nonce is zero, so this protects nothing.
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
            let Self::Raw(bytes) = self else { unreachable!("the other two are handled") };
            return bytes.to_vec();
        };
        let mut map: Map<_, _> =
            entries.iter().map(|(key, value)| ((*key).to_owned(), value.json())).collect();
        // The values of the input would describe other tensors.
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
            Self::Float(number) => (*number).into(), // null if JSON cannot represent it
            Self::Text(text) => (*text).into(),
            Self::List(items) => items.iter().copied().collect(),
        }
    }
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
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
