//! Long work: how far it is, for those who wait for it, and how they end it.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::source::Source;

/// Shared by the threads that read and the one that waits for them.
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

    /// Make the work end soon, with an error of kind `Interrupted`.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// So many bytes more were read.
    ///
    /// # Errors
    /// `Interrupted`, where the work is to end.
    pub fn advance(&self, bytes: usize) -> io::Result<()> {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

/// A source whose every read is counted, and the last one once the work is to end.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'a, S: ?Sized> {
    /// What is read.
    pub source: &'a S,
    /// Who is told.
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
