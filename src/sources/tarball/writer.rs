//! Contents and attributes of files, written by a few threads behind a bounded queue.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{self, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::{Errno, pwrite};

use super::TarballError;
use super::entry::Attributes;

/// Bytes that may wait in the queue.
const QUEUE_BYTES: usize = 32 << 20;

/// Pieces, and so open files, that may wait in the queue.
const QUEUE_PIECES: usize = 256;

/// So much has to wait before a sleeping thread is woken.
const WAKE_PIECES: usize = 16;
const WAKE_BYTES: usize = 1 << 20;

/// Buffers that are kept for the next piece.
const SPARE_BUFFERS: usize = 64;

/// A file that was made and is being filled. The last holder sets its attributes.
pub(super) struct Made {
    pub(super) fd: OwnedFd,
    /// Relative to the target.
    pub(super) path: Vec<u8>,
    pub(super) attributes: Attributes,
}

struct Piece {
    file: Arc<Made>,
    offset: u64,
    data: Vec<u8>,
}

impl Piece {
    /// Bytes that wait in the queue with it.
    fn bytes(&self) -> usize {
        match self.data.len() {
            // The last piece of a file: its attributes are set after it.
            0 => self.file.attributes.xattr_bytes(),
            length => length,
        }
    }
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    closed: bool,
    error: Option<TarballError>,
    /// Threads that wait for work.
    idle: usize,
    spare: Vec<Vec<u8>>,
}

/// The queue between who reads the archive and who writes files.
#[derive(Default)]
pub(super) struct Writer {
    queue: Mutex<Queue>,
    filled: Condvar,
    drained: Condvar,
}

/// Closes the queue when dropped.
pub(super) struct Closing<'a>(&'a Writer);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.filled.notify_all();
    }
}

impl Writer {
    /// Empty, with room from earlier use if there is one.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.lock().spare.pop().unwrap_or_default()
    }

    /// Queues `data` for `offset` of a file; waits while the queue is full. Fails with the error of an earlier piece.
    pub(super) fn write(&self, file: &Arc<Made>, offset: u64, data: Vec<u8>) -> Result<(), TarballError> {
        self.push(Piece {
            file: Arc::clone(file),
            offset,
            data,
        })
    }

    /// No more pieces will come for this file.
    pub(super) fn finish(&self, file: Arc<Made>) -> Result<(), TarballError> {
        self.push(Piece {
            file,
            offset: 0,
            data: Vec::new(),
        })
    }

    fn push(&self, piece: Piece) -> Result<(), TarballError> {
        let mut queue = self.lock();
        while queue.error.is_none() && (queue.bytes >= QUEUE_BYTES || queue.pieces.len() >= QUEUE_PIECES) {
            queue = self.drained.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = queue.error.take() {
            return Err(error);
        }
        queue.bytes += piece.bytes();
        queue.pieces.push_back(piece);
        // A few at a time: waking a thread costs as much as writing a small file.
        let wake = queue.idle > 0 && (queue.pieces.len() >= WAKE_PIECES || queue.bytes >= WAKE_BYTES);
        drop(queue);
        if wake {
            self.filled.notify_one();
        }
        Ok(())
    }

    pub(super) fn close_on_drop(&self) -> Closing<'_> {
        Closing(self)
    }

    /// What went wrong after the last piece was queued.
    pub(super) fn into_result(self) -> Result<(), TarballError> {
        let queue = self.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.error.map_or(Ok(()), Err)
    }

    /// Writes until the queue is closed and empty; `target` is for messages. After an error the rest is dropped.
    pub(super) fn work(&self, target: &Path) {
        let mut failed = false;
        while let Some(Piece { file, offset, mut data }) = self.pop() {
            if !failed && let Err((action, errno, path)) = write_piece(file, offset, &data) {
                let path = target.join(OsStr::from_bytes(&path));
                self.lock().error.get_or_insert(TarballError::io(action, &path)(errno));
                self.drained.notify_all();
                failed = true;
            }
            data.clear();
            let mut queue = self.lock();
            if data.capacity() > 0 && queue.spare.len() < SPARE_BUFFERS {
                queue.spare.push(data);
            }
        }
    }

    fn pop(&self) -> Option<Piece> {
        let mut queue = self.lock();
        loop {
            if let Some(piece) = queue.pieces.pop_front() {
                let was_full = queue.bytes >= QUEUE_BYTES || queue.pieces.len() + 1 >= QUEUE_PIECES;
                queue.bytes -= piece.bytes();
                drop(queue);
                if was_full {
                    self.drained.notify_one();
                }
                return Some(piece);
            }
            if queue.closed {
                return None;
            }
            queue.idle += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A thread that panicked left the queue whole: each change is complete before anything can fail.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_piece(file: Arc<Made>, mut offset: u64, mut data: &[u8]) -> Result<(), (&'static str, Errno, Vec<u8>)> {
    while !data.is_empty() {
        match pwrite(&file.fd, data, offset) {
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(("write", errno, file.path.clone())),
        }
    }
    // Exactly one thread gets the file itself: whoever lets go of it last.
    let Some(file) = Arc::into_inner(file) else {
        return Ok(());
    };
    fs::fstat(&file.fd)
        .map_err(|errno| ("look at", errno))
        .and_then(|stat| set_attributes(file.fd.as_fd(), &stat, &file.attributes))
        .map_err(|(action, errno)| (action, errno, file.path))
}

/// Sets the attributes of a file or directory that differ from `stat`.
pub(super) fn set_attributes(
    fd: BorrowedFd<'_>,
    stat: &Stat,
    wanted: &Attributes,
) -> Result<(), (&'static str, Errno)> {
    // In this order: chown(2) clears set-user-ID and file capabilities.
    let given_away = (stat.st_uid, stat.st_gid) != (wanted.uid, wanted.gid);
    if given_away {
        fs::fchown(fd, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))
            .map_err(|errno| ("change the owner of", errno))?;
    }
    if given_away || stat.st_mode & 0o7777 != wanted.mode {
        fs::fchmod(fd, Mode::from_raw_mode(wanted.mode)).map_err(|errno| ("change the mode of", errno))?;
    }
    for (name, value) in &wanted.xattrs {
        fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty())
            .map_err(|errno| ("set an extended attribute of", errno))?;
    }
    fs::futimens(fd, &timestamps(wanted.mtime)).map_err(|errno| ("set the time of", errno))
}

/// The modification time alone.
pub(super) fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_wait_fill_the_queue() {
        let place = tempfile::tempdir().unwrap();
        let writer = Writer::default();
        let made = Made {
            fd: std::fs::File::create(place.path().join("f")).unwrap().into(),
            path: b"f".to_vec(),
            attributes: Attributes {
                xattrs: vec![(b"user.a".to_vec(), vec![b'x'; 1000])],
                ..Attributes::default()
            },
        };
        writer.finish(Arc::new(made)).unwrap();
        assert_eq!(writer.lock().bytes, 1006);
        assert!(writer.pop().is_some());
        assert_eq!(writer.lock().bytes, 0);
    }
}
