//! Replacing a file as a whole: readers see the old one or the new one, never a part.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process,
};

/// Ends the name of a file that is being written.
const SUFFIX: &str = ".apr-tmp";
/// Bytes of the target's name kept in the temporary's, whose length the file system limits.
const KEPT: usize = 100;

/// A temporary sibling of `target`, which [`AtomicFile::commit`] puts in its place.
///
/// The temporary is locked while its writer lives: one without a lock was left by a writer that was
/// killed, and the next writer of the same target removes it. Dropped before the commit, it goes too.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    directory: PathBuf,
    /// Held open for the flush at the end: that it cannot be is known before anything is written.
    entries: File,
    committed: bool,
}

impl AtomicFile {
    /// Start writing what is to become `target`. It keeps the mode of the file that it replaces, so that a
    /// private one stays private; a new one's follows the umask.
    ///
    /// # Errors
    /// The operating system's; `target` is a directory or no regular file, or the directory that it is in
    /// cannot be read.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = through_links(target)?;
        let name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let entries = File::open(&directory)?;
        let prefix = prefix(name);
        remove_leftovers(&directory, &prefix);
        let replaced = fs::metadata(&target).ok();
        for attempt in 0_u64.. {
            let mut temporary = prefix.clone();
            temporary.push(format!("{}-{attempt}{SUFFIX}", process::id()));
            let temporary = directory.join(temporary);
            let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            // Where the file system has no locks, nothing of this name is ever taken for a leftover.
            let _ = file.lock();
            // Another writer may have taken it for a leftover before the lock was there.
            if file.metadata()?.nlink() > 0 {
                let made = Self { file, temporary, target, directory, entries, committed: false };
                if let Some(replaced) = replaced {
                    made.file.set_permissions(replaced.permissions())?;
                }
                return Ok(made);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where the temporary lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Append the next `size` bytes of another file; the kernel copies them where it can.
    ///
    /// # Errors
    /// The operating system's; `UnexpectedEof` where the other file is shorter.
    pub fn append(&mut self, from: &mut File, size: u64) -> io::Result<()> {
        let mut rest = from.take(size);
        while rest.limit() > 0 {
            match io::copy(&mut rest, &mut self.file) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // A signal may end a copy early: both files stand where it stopped.
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Flush to disk, take the target's place, and flush the directory.
    ///
    /// # Errors
    /// The operating system's; the target is then as it was, or the error's text says that it is the new file.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.committed = true;
        // Under no number of the system's, so that this text is what the user reads.
        self.entries.sync_all().map_err(|error| {
            let what = "the new file is there and whole, but its directory was not flushed to the disk, so that \
                        a loss of power may bring back the old one";
            io::Error::new(error.kind(), format!("{what}: {error}"))
        })
    }
}

impl AsFd for AtomicFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a temporary that will not go.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The file itself where `target` is a link to one, be it there or not; refuses what a rename would wrongly
/// replace.
fn through_links(target: &Path) -> io::Result<PathBuf> {
    match fs::metadata(target) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
        }
        Ok(_) if target.is_symlink() => fs::canonicalize(target),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // Links in a circle are another error: this ends.
        Err(_) if target.is_symlink() => {
            let next = fs::read_link(target)?;
            through_links(&target.parent().map_or(next.clone(), |parent| parent.join(next)))
        }
        Ok(_) | Err(_) => Ok(target.to_owned()),
    }
}

fn prefix(name: &std::ffi::OsStr) -> OsString {
    let bytes = name.as_encoded_bytes();
    let kept = String::from_utf8_lossy(&bytes[..bytes.len().min(KEPT)]).into_owned();
    OsString::from(format!(".{kept}.{:08x}.", crc32fast::hash(bytes)))
}

/// Remove temporaries of the same target whose writers are gone. Failing to is no error of the new write.
fn remove_leftovers(directory: &Path, prefix: &std::ffi::OsStr) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(prefix.as_encoded_bytes()) && name.ends_with(SUFFIX.as_bytes()) {
            let _ = remove_if_dead(&entry.path());
        }
    }
}

fn remove_if_dead(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    if file.try_lock().is_ok() && file.metadata()?.nlink() > 0 {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_dropped_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.apr");
        fs::write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["a.apr"]);
    }

    #[test]
    fn leftovers_of_dead_writers_go_and_those_of_living_ones_stay() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.apr");
        let mut dead = prefix("a.apr".as_ref());
        dead.push("1-0.apr-tmp");
        fs::write(directory.path().join(dead), b"left").unwrap();
        let living = AtomicFile::create(&target).unwrap();
        let other = AtomicFile::create(&target).unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        living.commit().unwrap();
        other.commit().unwrap();
        assert_eq!(names(directory.path()), ["a.apr"]);
    }

    #[test]
    fn a_directory_that_is_not_flushed_is_said_of_the_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.apr");
        fs::write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        file.entries = File::open("/dev/null").unwrap(); // which cannot be flushed
        let error = file.commit().unwrap_err();
        assert!(error.to_string().starts_with("the new file is there and whole"), "{error}");
        assert!(error.raw_os_error().is_none());
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["a.apr"]);
    }

    #[test]
    fn a_link_keeps_pointing_at_what_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("a.apr"), directory.path().join("link"));
        fs::write(&target, b"old").unwrap();
        std::os::unix::fs::symlink("a.apr", &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_link_to_what_is_not_there_yet_is_followed_and_one_to_itself_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (link, circle) = (directory.path().join("link"), directory.path().join("circle"));
        std::os::unix::fs::symlink("later.apr", &link).unwrap();
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        AtomicFile::create(&link).unwrap().commit().unwrap();
        assert!(AtomicFile::create(&circle).is_err());
        assert_eq!(names(directory.path()), ["circle", "later.apr", "link"]);
    }
}
