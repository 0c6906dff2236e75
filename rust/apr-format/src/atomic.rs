//! Replace a file as a whole: readers see the old file or the new one, never a part.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    process,
};

/// The end of the name of a temporary file.
const SUFFIX: &str = ".apr-tmp";
/// Bytes of the name of the target in the name of the temporary file. File systems limit names to 255 bytes.
const KEPT: usize = 100;

/// A temporary file beside its target, which [`AtomicFile::commit`] puts in the target's place.
///
/// It is locked while its writer lives. One without a lock was left behind by a writer that was killed; the next writer
/// of the same target removes it. If it is dropped before the commit, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    directory: PathBuf,
    /// The directory, opened before anything is written: a directory that cannot be flushed is known early.
    entries: File,
    committed: bool,
}

impl AtomicFile {
    /// Start to write the file at `target`. It gets the mode of the file that it replaces, so that a private file stays
    /// private; the mode of a new file follows the umask.
    ///
    /// # Errors
    /// Those of the operating system; `IsADirectory`; `InvalidInput` if `target` is not a regular file.
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
            // On a file system without locks this fails, and so does the lock of whoever looks for leftovers.
            let _ = file.lock();
            // Another writer may have removed it as a leftover before it was locked.
            if file.metadata()?.nlink() > 0 {
                let atomic = Self { file, temporary, target, directory, entries, committed: false };
                if let Some(replaced) = replaced {
                    atomic.file.set_permissions(replaced.permissions())?;
                }
                return Ok(atomic);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Return the directory of the temporary file.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Append the next `size` bytes of another file. The kernel copies them, if the file system supports it.
    ///
    /// # Errors
    /// Those of the operating system; `UnexpectedEof` if the other file is shorter.
    pub fn append(&mut self, from: &mut File, size: u64) -> io::Result<()> {
        let mut part = from.take(size);
        while part.limit() > 0 {
            match io::copy(&mut part, &mut self.file) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // A signal can end a copy early. The positions of both files are then where it stopped.
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Flush the file to disk, put it in the place of the target, and flush the directory.
    ///
    /// # Errors
    /// Those of the operating system. The target is then unchanged, unless the message says otherwise: the last step can
    /// fail too.
    pub fn commit(mut self) -> io::Result<()> {
        // Before the rename: otherwise a loss of power could leave an empty file under the name of the target.
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.committed = true;
        // Without an errno, so that this text reaches the user instead of the system's.
        self.entries.sync_all().map_err(|error| {
            let what = "the new file is complete and in place, but its directory was not flushed to disk; a loss of \
                        power can bring back the old file";
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
            // Nothing more can be done about a temporary file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Follow links to the file to replace, which need not exist. Refuse a directory and a device, which a rename would
/// replace.
fn through_links(target: &Path) -> io::Result<PathBuf> {
    match fs::metadata(target) {
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) if !metadata.is_file() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
        }
        Ok(_) if target.is_symlink() => fs::canonicalize(target),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // The recursion ends: links in a circle give another error than NotFound.
        Err(_) if target.is_symlink() => {
            let next = fs::read_link(target)?;
            through_links(&target.parent().map_or(next.clone(), |parent| parent.join(next)))
        }
        Ok(_) | Err(_) => Ok(target.to_owned()),
    }
}

/// Return the start of the names of temporary files for a target. The CRC32 keeps long names with the same start apart.
fn prefix(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    let mut kept = bytes.len().min(KEPT);
    if let Some(text) = name.to_str() {
        while !text.is_char_boundary(kept) {
            kept -= 1;
        }
    }
    let mut prefix = OsString::from(".");
    // As bytes: a name in another encoding must not grow, or it would be longer than a name may be.
    prefix.push(OsStr::from_bytes(&bytes[..kept]));
    prefix.push(format!(".{:08x}.", crc32fast::hash(bytes)));
    prefix
}

/// Remove temporary files of the same target whose writers are gone. A failure does not matter to the new file.
fn remove_leftovers(directory: &Path, prefix: &OsStr) {
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
    fn only_temporary_files_of_dead_writers_are_removed() {
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
    fn the_error_of_an_unflushed_directory_says_that_the_new_file_is_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.apr");
        fs::write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        file.entries = File::open("/dev/null").unwrap(); // cannot be flushed
        let error = file.commit().unwrap_err();
        assert!(error.to_string().starts_with("the new file is complete"), "{error}");
        assert!(error.raw_os_error().is_none());
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["a.apr"]);
    }

    #[test]
    fn a_name_of_255_bytes_in_any_encoding_is_written() {
        let directory = tempfile::tempdir().unwrap();
        for part in ["a".as_bytes(), "é".as_bytes(), "x\u{1f600}".as_bytes(), b"\xe9"] {
            let name: Vec<u8> = part.iter().copied().cycle().take(255 - 255 % part.len()).collect();
            let target = directory.path().join(OsStr::from_bytes(&name));
            AtomicFile::create(&target).unwrap().commit().unwrap();
            assert!(target.is_file());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
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
    fn a_dangling_link_is_followed_and_a_circular_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (link, circle) = (directory.path().join("link"), directory.path().join("circle"));
        std::os::unix::fs::symlink("later.apr", &link).unwrap();
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        AtomicFile::create(&link).unwrap().commit().unwrap();
        assert!(AtomicFile::create(&circle).is_err());
        assert_eq!(names(directory.path()), ["circle", "later.apr", "link"]);
    }
}
