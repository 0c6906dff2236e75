//! Progress of long work, and a way to stop it from another thread.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::source::Source;

/// Shared by the threads that read and the thread that waits for them.
///
/// The counter and the flag guard no other memory, so relaxed ordering suffices.
#[derive(Debug, Default)]
pub struct Watch {
    read: AtomicU64,
    stop: AtomicBool,
}

impl Watch {
    /// Bytes read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Make the work end at its next read, with an error of kind `Interrupted`.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Count bytes that were read.
    ///
    /// # Errors
    /// `Interrupted` after [`Watch::stop`].
    pub fn advance(&self, bytes: usize) -> io::Result<()> {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

/// A source that counts its reads and fails after [`Watch::stop`].
#[derive(Debug, Clone, Copy)]
pub struct Watched<'a, S: ?Sized> {
    /// The source that is read.
    pub source: &'a S,
    /// The counter and the stop flag.
    pub watch: &'a Watch,
}

impl<S: Source + ?Sized> Source for Watched<'_, S> {
    fn size(&self) -> io::Result<u64> {
        self.source.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.source.read_at(offset, buffer)?;
        self.watch.advance(buffer.len())
    }
}
