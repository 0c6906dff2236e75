//! Decrypt a payload and check a signature.
//!
//! ```text
//! for a password:  | salt 16 | nonce 12 | ciphertext | tag 16 |
//! for a recipient: | ephemeral X25519 key 32 | hint 8 | nonce 12 | ciphertext | tag 16 |
//! ```
//!
//! No field tells the two apart: the key that the caller gives decides how the payload is read.

use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag, aead::AeadInOut};
use argon2::{Algorithm, Argon2, Params, Version};
use ed25519_dalek::{Signature, VerifyingKey};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::{
    error::{Part, Result, Rule},
    keys::Unlock,
};

const SALT: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
const PUBLIC: usize = 32;
/// The first bytes of the recipient's public key, by which a wrong key is recognized.
const HINT: usize = 8;
/// Bytes of the smallest encrypted payload: for a password, with an empty plaintext.
pub(super) const MIN_SIZE: u64 = (SALT + NONCE + TAG) as u64;
/// The context of HKDF, which ties the derived key to this use.
const INFO: &[u8] = b"apr-v1-encrypt";
/// The cost of Argon2id: memory in KiB, passes, lanes. The file does not store it; it is what the writer uses, and the
/// minimum that OWASP recommends.
const COST: (u32, u32, u32) = (19_456, 2, 1);

type Key = Zeroizing<[u8; 32]>;

/// Decrypt a payload, which stays compressed. `offset` is its place in the file.
pub(super) fn decrypt(mut payload: Vec<u8>, unlock: &Unlock, offset: u64) -> Result<Vec<u8>> {
    let failed = |what| Rule::Decryption { what }.at(Part::Encryption, offset);
    let (key, head, wrong) = match unlock {
        Unlock::Password(password) => (
            from_password(password, &payload).ok_or_else(|| failed("cannot derive a key"))?,
            SALT,
            "the password is wrong, the file is encrypted for a recipient key, or it was changed",
        ),
        Unlock::Recipient(secret) => (
            from_recipient(secret, &payload).map_err(failed)?,
            PUBLIC + HINT,
            "the file was changed after it was encrypted for this recipient key",
        ),
    };
    let start = head + NONCE;
    let (before, sealed) = payload.split_at_mut_checked(start).ok_or_else(|| failed(NOT_FOR_A_KEY))?;
    let body = sealed.len().checked_sub(TAG).ok_or_else(|| failed(NOT_FOR_A_KEY))?;
    let (text, tag) = sealed.split_at_mut(body);
    let (Ok(nonce), Ok(tag)) = (Nonce::try_from(&before[head..]), Tag::try_from(&*tag)) else {
        return Err(failed(wrong));
    };
    Aes256Gcm::new((&*key).into())
        .decrypt_inout_detached(&nonce, b"", text.into(), &tag)
        .map_err(|_| failed(wrong))?;
    payload.truncate(start + body);
    payload.drain(..start);
    Ok(payload)
}

const NOT_FOR_A_KEY: &str = "the file is encrypted for another recipient key or with a password";

fn from_password(password: &str, payload: &[u8]) -> Option<Key> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(32)).ok()?;
    let mut key = Key::default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password.as_bytes(), payload.get(..SALT)?, key.as_mut())
        .ok()?;
    Some(key)
}

fn from_recipient(secret: &[u8; 32], payload: &[u8]) -> std::result::Result<Key, &'static str> {
    let secret = StaticSecret::from(*secret);
    let (Some(ephemeral), Some(hint)) = (payload.first_chunk::<PUBLIC>(), payload.get(PUBLIC..PUBLIC + HINT))
    else {
        return Err(NOT_FOR_A_KEY);
    };
    if hint != &PublicKey::from(&secret).as_bytes()[..HINT] {
        return Err(NOT_FOR_A_KEY);
    }
    let shared = secret.diffie_hellman(&PublicKey::from(*ephemeral));
    if !shared.was_contributory() {
        return Err("the ephemeral key in the file gives no secret");
    }
    let mut key = Key::default();
    match Hkdf::<Sha256>::new(None, shared.as_bytes()).expand(INFO, key.as_mut()) {
        Ok(()) => Ok(key),
        Err(_) => Err("cannot derive a key"),
    }
}

/// Check that `public_key` signed `message`, and that it is the trusted key if the caller has one.
///
/// `offset` is the place of the signature in the file.
pub(super) fn check_signature(
    message: &[u8],
    signature: &[u8; 64],
    public_key: &[u8; 32],
    trusted: Option<&[u8; 32]>,
    offset: u64,
) -> Result<()> {
    let failed = |offset, what: &str| Rule::Signature { what: what.into() }.at(Part::Signature, offset);
    // Strict verification refuses keys of small order, with which one signature fits every message.
    VerifyingKey::from_bytes(public_key)
        .map_err(|_| failed(offset + 64, "the public key in the file is invalid"))?
        .verify_strict(message, &Signature::from_bytes(signature))
        .map_err(|_| {
            failed(offset, "the signature does not match; the file was changed after it was signed")
        })?;
    if trusted.is_some_and(|trusted| trusted != public_key) {
        let what = format!("the file is signed by the key {}, which is not the trusted key", hex(public_key));
        return Err(Rule::Signature { what }.at(Part::Signature, offset + 64));
    }
    Ok(())
}

/// Format bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
