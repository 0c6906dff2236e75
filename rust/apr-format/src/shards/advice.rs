//! Hints to the kernel about coming reads. They only affect speed, so every failure is ignored.

use std::fs::File;

#[cfg(target_os = "linux")]
mod system {
    use std::{fs::File, num::NonZero};

    use rustix::fs::{Advice, fadvise};

    pub fn advise_all(file: &File, advice: Advice) {
        let _ = fadvise(file, 0, None, advice);
    }

    pub fn will_need(file: &File, offset: u64, length: usize) {
        let _ = fadvise(file, offset, NonZero::new(length as u64), Advice::WillNeed);
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
