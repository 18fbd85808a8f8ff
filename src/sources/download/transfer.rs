//! A file fetched piece by piece: gone on with after an interruption, and tried again for a while.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::time::{Duration, Instant};

use rustix::fs::fstatvfs;
use sha2::{Digest as _, Sha256};

use super::answer::{Answer, Failure, Head, Request, Validators, Waited};
use super::guard::Guard;
use crate::machine::{Cancel, Cancelled, Report};
use crate::sources::sum::Sum;
use crate::sources::url::Url;

/// How often it is tried without getting any further, and the pause after the first time. Each is twice as long as the last.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 500 });

/// Bytes that have to come for a try to count as getting further: a server that trickles is not waited for without end.
const FURTHER: u64 = 1 << 20;

/// How often a small file is asked for, and how long that may take in all.
const SMALL_TRIES: u32 = 2;
const SMALL_TIME: Duration = Duration::from_secs(60);

/// What is left free on the filesystem: so many bytes, or its twentieth if that is less.
const LEFT: u64 = 256 << 20;

/// Bytes after which it is asked again what is free.
const LOOK: u64 = 16 << 20;

/// How it is fetched.
pub(super) struct Transfer<'a> {
    pub(super) url: &'a Url,
    /// Besides those that the address and the file need.
    pub(super) headers: &'a [(&'static str, String)],
    pub(super) guard: Option<Guard>,
    /// Bytes that the file has at the most.
    pub(super) most: Option<u64>,
    pub(super) proxy: Option<&'a str>,
    pub(super) report: &'a dyn Report,
    pub(super) cancel: &'a Cancel,
}

/// A file on its way, or what has come of it so far.
pub(super) struct Part<'a> {
    pub(super) file: File,
    /// Those of what is in it; none if that is of no use.
    pub(super) validators: Validators,
    /// Keeps them for another call, before anything of the file is there.
    pub(super) keep: &'a dyn Fn(&Validators) -> io::Result<()>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Fetched {
    /// The server has what was known before.
    Unchanged,
    /// The whole file.
    Whole(Sum),
}

/// Why not.
#[derive(Debug)]
pub(super) enum TransferError {
    /// The server, or the way to it.
    Server(String),
    /// The server could not show who it is.
    Tls(String),
    /// It does not have the file.
    Missing(u16),
    /// The file has more than so many bytes, and should be a small one.
    Large(u64),
    /// The file that it is written to.
    Write(io::Error),
    /// It is larger than what is free: bytes that were to come, if known, and that may.
    NoRoom(Option<u64>, u64),
    /// The caller asked to stop.
    Cancelled(Cancelled),
}

/// Why one try did not get to the end.
enum Failed {
    Again(String),
    For(TransferError),
}

impl From<Waited> for Failed {
    fn from(waited: Waited) -> Self {
        match waited {
            Waited::Cancelled(cancelled) => Self::For(TransferError::Cancelled(cancelled)),
            Waited::Failed(Failure {
                reason, passes: true, ..
            }) => Self::Again(reason),
            Waited::Failed(Failure { reason, tls: true, .. }) => Self::For(TransferError::Tls(reason)),
            Waited::Failed(Failure { reason, .. }) => Self::For(TransferError::Server(reason)),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::For(TransferError::Write(error))
    }
}

impl Transfer<'_> {
    /// Fetches it into `part`, unless the server has nothing else than what `known` stands for.
    pub(super) fn fetch(&self, part: &mut Part<'_>, known: &Validators) -> Result<Fetched, TransferError> {
        let mut tries = 0;
        loop {
            let before = length(&part.file).map_err(TransferError::Write)?;
            let reason = match self.try_once(part, known) {
                Ok(fetched) => return Ok(fetched),
                Err(Failed::For(error)) => return Err(error),
                Err(Failed::Again(reason)) => reason,
            };
            let after = length(&part.file).map_err(TransferError::Write)?;
            tries = if after >= before + FURTHER { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(TransferError::Server(format!("{reason} ({tries} times)")));
            }
            self.pause(PAUSE * 2_u32.pow(tries - 1))
                .map_err(TransferError::Cancelled)?;
            self.report.phase(&format!("downloading again: {reason}"));
        }
    }

    /// Fetches a file of at most `max` bytes; `None` if there is none.
    pub(super) fn small(&self, max: u64) -> Result<Option<Vec<u8>>, TransferError> {
        let deadline = Instant::now() + SMALL_TIME;
        let mut tries = 1;
        loop {
            let reason = match self.small_once(max, deadline) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(Failed::For(TransferError::Missing(_))) => return Ok(None),
                Err(Failed::For(error)) => return Err(error),
                Err(Failed::Again(reason)) => reason,
            };
            if tries >= SMALL_TRIES {
                return Err(TransferError::Server(reason));
            }
            self.pause(PAUSE * 2_u32.pow(tries - 1))
                .map_err(TransferError::Cancelled)?;
            tries += 1;
        }
    }

    fn small_once(&self, max: u64, deadline: Instant) -> Result<Vec<u8>, Failed> {
        let request = Request {
            deadline: Some(deadline),
            ..self.request(Vec::new())
        };
        let (head, mut answer) = Answer::wait(&request, self.cancel)?;
        check_status(&head)?;
        let mut bytes = Vec::new();
        while let Some(piece) = answer.piece()? {
            bytes.extend(piece);
            if bytes.len() as u64 > max {
                return Err(Failed::For(TransferError::Large(max)));
            }
        }
        Ok(bytes)
    }

    fn try_once(&self, part: &mut Part<'_>, known: &Validators) -> Result<Fetched, Failed> {
        let here = length(&part.file)?;
        let mut headers = Vec::new();
        match part.validators.strong() {
            Some(validator) if here > 0 => {
                headers.push(("Range", format!("bytes={here}-")));
                headers.push(("If-Range", validator.to_owned()));
            }
            _ => {
                headers.extend(known.etag.clone().map(|etag| ("If-None-Match", etag)));
                headers.extend(known.modified.clone().map(|time| ("If-Modified-Since", time)));
            }
        }
        let conditional = !known.is_empty() && headers.iter().all(|(name, _)| *name != "Range");
        let (head, answer) = Answer::wait(&self.request(headers), self.cancel)?;
        match (head.status, head.first) {
            (304, _) if conditional => return Ok(Fetched::Unchanged),
            (206, Some(first)) if here > 0 && first == here && !part.validators.contradicts(&head.validators) => {
                let size = head.validators.size.or(part.validators.size);
                return self.receive(part, here, size, answer);
            }
            // Not what was asked for, of other contents, or more than there is: all of it, from its beginning.
            (206 | 304 | 416, _) => {
                self.start_anew(part, &Validators::default())?;
                return Err(Failed::Again(format!("it answers with HTTP status {}", head.status)));
            }
            _ => check_status(&head)?,
        }
        self.start_anew(part, &head.validators)?;
        self.receive(part, 0, head.length, answer)
    }

    #[expect(clippy::unused_self, reason = "one of the steps of a try")]
    fn start_anew(&self, part: &mut Part<'_>, validators: &Validators) -> io::Result<()> {
        part.file.set_len(0)?;
        part.validators = validators.clone();
        (part.keep)(validators)
    }

    /// Writes what comes behind the first `here` bytes.
    fn receive(
        &self,
        part: &mut Part<'_>,
        here: u64,
        size: Option<u64>,
        mut answer: Answer<'_>,
    ) -> Result<Fetched, Failed> {
        let is_too_much = |bytes: u64| self.most.is_some_and(|most| bytes > most);
        let too_much = || {
            Failed::For(TransferError::Server(
                "it has more bytes than the image says".to_owned(),
            ))
        };
        if is_too_much(size.unwrap_or(0)) {
            return Err(too_much());
        }
        check_room(&part.file, size.map(|size| size.saturating_sub(here)))?;
        let mut looked = here;
        let mut sum = Sha256::new();
        part.file.rewind()?;
        add(&mut sum, &mut part.file, here)?;
        part.file.seek(SeekFrom::Start(here))?;
        let mut done = here;
        self.report.progress(done, size);
        let end = loop {
            match answer.piece() {
                Ok(None) => break None,
                Ok(Some(piece)) => {
                    done += piece.len() as u64;
                    if is_too_much(done) {
                        break Some(too_much());
                    }
                    sum.update(&piece);
                    part.file.write_all(&piece)?;
                    if done >= looked + LOOK {
                        looked = done;
                        check_room(&part.file, None)?;
                    }
                    self.report.progress(done, size);
                }
                Err(waited) => break Some(Failed::from(waited)),
            }
        };
        match (end, size) {
            (Some(failed), _) => Err(failed),
            (None, Some(size)) if done != size => Err(Failed::Again(format!("it ended after {done} of {size} bytes"))),
            (None, _) => Ok(Fetched::Whole(Sum::from_digest(sum))),
        }
    }

    fn request(&self, mut headers: Vec<(&'static str, String)>) -> Request<'_> {
        headers.extend(self.url.authorization().map(|login| ("Authorization", login)));
        headers.extend(self.headers.iter().cloned());
        Request {
            deadline: None,
            guard: self.guard,
            url: self.url,
            proxy: self.proxy,
            headers,
        }
    }

    fn pause(&self, long: Duration) -> Result<(), Cancelled> {
        let end = Instant::now() + long;
        while Instant::now() < end {
            self.cancel.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Refuses an answer that is no file.
fn check_status(head: &Head) -> Result<(), Failed> {
    let answers = format!("it answers with HTTP status {}", head.status);
    match head.status {
        200 => Ok(()),
        // Also those who do not tell whether there is something.
        401 | 403 | 404 | 410 => Err(Failed::For(TransferError::Missing(head.status))),
        408 | 425 | 429 | 500 | 502..=504 => Err(Failed::Again(answers)),
        _ => Err(Failed::For(TransferError::Server(answers))),
    }
}

/// Refuses what `more` bytes would leave too little room beside.
fn check_room(file: &File, more: Option<u64>) -> Result<(), Failed> {
    let filesystem = fstatvfs(file).map_err(io::Error::from)?;
    let bytes = |blocks: u64| blocks.saturating_mul(filesystem.f_frsize);
    let left = LEFT.min(bytes(filesystem.f_blocks) / 20);
    let room = bytes(filesystem.f_bavail).saturating_sub(left);
    if room == 0 || more.is_some_and(|more| more > room) {
        return Err(Failed::For(TransferError::NoRoom(more, room)));
    }
    Ok(())
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Adds the next `count` bytes of a file.
fn add(sum: &mut Sha256, file: &mut File, count: u64) -> io::Result<()> {
    let mut rest = file.take(count);
    let mut piece = vec![0; 256 << 10];
    loop {
        match rest.read(&mut piece)? {
            0 => return Ok(()),
            read => sum.update(&piece[..read]),
        }
    }
}
