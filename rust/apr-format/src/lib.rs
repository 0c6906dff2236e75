#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

#[cfg(not(unix))]
compile_error!("apr-format supports Unix only: it reads files by position and locks the ones that it writes");

mod atomic;
mod codec;
mod container;
mod contents;
mod crc;
mod dtype;
mod error;
mod file;
mod index;
mod json;
mod keys;
mod mapping;
mod quant;
#[cfg(feature = "shards")]
mod shards;
mod sniff;
mod source;
mod threads;
#[cfg(feature = "v1")]
mod v1;
mod v2;
mod variants;
mod verify;
mod watch;
mod writer;

pub use dtype::Dtype;
pub use error::{At, Error, Kind, Part, Result, Rule};
pub use file::{File, open, verify};
pub use index::Tensor as TensorInfo;
pub use keys::{Keys, Unlock};
pub use sniff::Foreign;
pub use verify::{Check, Findings as Report};
pub use writer::{TensorData, Writer, save};

/// The parts behind the public face, for the Python bindings, the fuzz targets and the tests of this repository.
///
/// Not covered by semantic versioning: anything in here may change in any release.
#[doc(hidden)]
pub mod internal {
    macro_rules! expose {
        ($($(#[$attribute:meta])* $module:ident)*) => {
            $(
                $(#[$attribute])*
                pub mod $module {
                    //! The module of the same name.
                    pub use crate::$module::*;
                }
            )*
        };
    }

    expose! {
        atomic codec container contents crc dtype index json keys mapping quant sniff source threads v2 variants
        verify watch
        #[cfg(feature = "shards")]
        shards
        #[cfg(feature = "v1")]
        v1
    }
}
