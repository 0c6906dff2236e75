//! Hints to the kernel about coming reads. They only affect speed, so every failure is ignored.

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

/// Tell the kernel that the file will be read from start to end, so that it reads further ahead.
pub(super) fn sequential(file: &File) {
    #[cfg(target_os = "linux")]
    system::advise_all(file, system::Sequential);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Tell the kernel that the file will be read at random places, so that it does not read ahead.
pub(super) fn random(file: &File) {
    #[cfg(target_os = "linux")]
    system::advise_all(file, system::Random);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// These bytes will be read soon; the kernel may start now.
pub(super) fn will_need(file: &File, offset: u64, length: usize) {
    #[cfg(target_os = "linux")]
    system::will_need(file, offset, length);
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length);
}

/// Fill `bytes` if they are in the page cache. Return whether they were; if not, the content of `bytes` is
/// unspecified.
pub(super) fn read_now(file: &File, bytes: &mut [u8], offset: u64) -> bool {
    #[cfg(target_os = "linux")]
    return system::read_now(file, bytes, offset);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, bytes, offset);
        false
    }
}
