//! What a caller gives to open a file. Cleared from memory when dropped, and never shown.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::{Part, Result, Rule};

/// The keys that a caller gives.
#[derive(Default, Clone)]
pub struct Keys {
    /// What decrypts the payload.
    pub unlock: Option<Unlock>,
    /// The public key whose signature the file must carry.
    pub trusted: Option<[u8; 32]>,
}

/// What decrypts a payload.
#[derive(Clone)]
pub enum Unlock {
    /// A password.
    Password(Zeroizing<String>),
    /// The recipient's X25519 secret key.
    Recipient(Zeroizing<[u8; 32]>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Keys(not shown)")
    }
}

impl Keys {
    /// Refuse keys for a form that is neither encrypted nor signed.
    ///
    /// # Errors
    /// [`Rule::Signature`], [`Rule::Decryption`].
    pub fn refuse(&self) -> Result<()> {
        self.refuse_trusted()?;
        self.refuse_unlock()
    }

    pub(crate) fn refuse_trusted(&self) -> Result<()> {
        if self.trusted.is_some() {
            return Err(Rule::Signature { what: "the file is not signed".into() }.within(Part::Signature));
        }
        Ok(())
    }

    pub(crate) fn refuse_unlock(&self) -> Result<()> {
        let what = match self.unlock {
            Some(Unlock::Password(_)) => "the file is not encrypted: open it without a password",
            Some(Unlock::Recipient(_)) => "the file is not encrypted: open it without a recipient key",
            None => return Ok(()),
        };
        Err(Rule::Decryption { what }.within(Part::Encryption))
    }
}
