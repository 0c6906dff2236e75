//! What the system is told about reads to come. It may be deaf to all of it: nothing here can fail.

use std::fs::File;

#[cfg(target_os = "linux")]
mod system {
    use std::{fs::File, io::IoSliceMut, num::NonZero};

    use rustix::{
        fs::{Advice, fadvise},
        io::{ReadWriteFlags, preadv2},
    };

    pub fn advise_all(file: &File, advice: Advice) {
        let _ = fadvise(file, 0, None, advice);
    }

    pub fn will_need(file: &File, offset: u64, length: usize) {
        let _ = fadvise(file, offset, NonZero::new(length as u64), Advice::WillNeed);
    }

    pub fn read_now(file: &File, bytes: &mut [u8], offset: u64) -> bool {
        let length = bytes.len();
        let read = preadv2(file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(length)
    }

    pub use Advice::{Random, Sequential};
}

/// The whole file will be read from its start to its end: more may be read ahead.
pub(super) fn sequential(file: &File) {
    #[cfg(target_os = "linux")]
    system::advise_all(file, system::Sequential);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Parts of the file will be read from anywhere: what stands behind them need not be read ahead.
pub(super) fn random(file: &File) {
    #[cfg(target_os = "linux")]
    system::advise_all(file, system::Random);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// These bytes will be read soon.
pub(super) fn will_need(file: &File, offset: u64, length: usize) {
    #[cfg(target_os = "linux")]
    system::will_need(file, offset, length);
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length);
}

/// Fill `bytes` if that needs no waiting for a disk; else what they hold is of no use.
pub(super) fn read_now(file: &File, bytes: &mut [u8], offset: u64) -> bool {
    #[cfg(target_os = "linux")]
    return system::read_now(file, bytes, offset);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, bytes, offset);
        false
    }
}
