//! The keys that a caller gives to open a file.
//!
//! Secrets are erased from memory when they are dropped, and `Debug` does not show them.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::{Part, Result, Rule};

/// The keys to decrypt a file and to check its signature. The default has none.
#[derive(Default, Clone)]
pub struct Keys {
    /// The secret that decrypts the payload.
    pub unlock: Option<Unlock>,
    /// The Ed25519 public key that must have signed the file.
    pub trusted: Option<[u8; 32]>,
}

/// A secret that decrypts a payload.
#[derive(Clone)]
pub enum Unlock {
    /// A password.
    Password(Zeroizing<String>),
    /// The recipient's X25519 secret key.
    Recipient(Zeroizing<[u8; 32]>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Keys(..)")
    }
}

impl Keys {
    /// Refuse all keys, for a file that is neither encrypted nor signed.
    ///
    /// To ignore them would let a caller believe that a signature was checked.
    ///
    /// # Errors
    /// [`Rule::Signature`] or [`Rule::Decryption`] if there is a key.
    pub fn refuse(&self) -> Result<()> {
        self.refuse_trusted()?;
        self.refuse_unlock()
    }

    pub(crate) fn refuse_trusted(&self) -> Result<()> {
        if self.trusted.is_some() {
            return Err(Rule::Signature {
                what: "the file is not signed; open it without a trusted key".into(),
            }
            .within(Part::Signature));
        }
        Ok(())
    }

    pub(crate) fn refuse_unlock(&self) -> Result<()> {
        let what = match self.unlock {
            Some(Unlock::Password(_)) => "the file is not encrypted; open it without a password",
            Some(Unlock::Recipient(_)) => "the file is not encrypted; open it without a recipient key",
            None => return Ok(()),
        };
        Err(Rule::Decryption { what }.within(Part::Encryption))
    }
}
