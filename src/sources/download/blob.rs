//! What a registry is asked for: documents, and blobs that are known by their sums before they are there.

use std::fs::File;
use std::io::Seek as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::answer::{Answer, Request, Validators, Waited};
use super::guard::Guard;
use super::store::{self, Known, Shelf};
use super::transfer::{Fetched, Part, Transfer, TransferError};
use super::{told, unasked};
use crate::machine::{Cancel, Report};
use crate::sources::sum::Sum;
use crate::sources::url::Url;
use crate::sources::{CacheUse, Places, SourceError};

/// How long a document may take in all, and how often it is asked for.
const TIME: Duration = Duration::from_secs(60);
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 500 });

/// An answer of a registry, of whatever status.
#[derive(Debug)]
pub(in crate::sources) struct Asked {
    pub(in crate::sources) status: u16,
    /// `Content-Type`
    pub(in crate::sources) kind: Option<String>,
    /// `WWW-Authenticate`
    pub(in crate::sources) challenge: Option<String>,
    /// Nothing, if the status is not 200.
    pub(in crate::sources) bytes: Vec<u8>,
}

/// Asks for a document of at most `most` bytes.
pub(in crate::sources) fn ask(
    url: &Url,
    headers: &[(&'static str, String)],
    guard: Guard,
    proxy: Option<&str>,
    most: u64,
    cancel: &Cancel,
) -> Result<Asked, SourceError> {
    let deadline = Instant::now() + TIME;
    let request = Request {
        url,
        proxy,
        headers: headers.to_vec(),
        deadline: Some(deadline),
        guard: Some(guard),
    };
    let mut tries = 1;
    loop {
        let failure = match ask_once(&request, most, cancel) {
            Ok(asked) if matches!(asked.status, 429 | 500 | 502..=504) && tries < TRIES => None,
            Ok(asked) => return Ok(asked),
            Err(Waited::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(Waited::Failed(failure)) => Some(failure),
        };
        if let Some(failure) = failure
            && (!failure.passes || tries >= TRIES)
        {
            return Err(SourceError::Download {
                url: url.to_string(),
                reason: failure.reason,
                tls: failure.tls,
            });
        }
        let end = Instant::now() + PAUSE * tries;
        while Instant::now() < end {
            cancel.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        tries += 1;
    }
}

fn ask_once(request: &Request<'_>, most: u64, cancel: &Cancel) -> Result<Asked, Waited> {
    let (head, mut answer) = Answer::wait(request, cancel)?;
    let mut bytes = Vec::new();
    if head.status == 200 {
        while let Some(piece) = answer.piece()? {
            bytes.extend(piece);
            if bytes.len() as u64 > most {
                return Err(Waited::too_long(most));
            }
        }
        if head.length.is_some_and(|length| length != bytes.len() as u64) {
            return Err(Waited::cut());
        }
    }
    Ok(Asked {
        status: head.status,
        kind: head.said.kind,
        challenge: head.said.challenge,
        bytes,
    })
}

/// A blob that is wanted.
pub(in crate::sources) struct Blob<'a> {
    pub(in crate::sources) url: &'a Url,
    pub(in crate::sources) headers: &'a [(&'static str, String)],
    pub(in crate::sources) guard: Guard,
    pub(in crate::sources) proxy: Option<&'a str>,
    /// If it is not known it is not kept, and for the caller to check.
    pub(in crate::sources) sum: Option<Sum>,
    pub(in crate::sources) size: Option<u64>,
    /// What messages call it.
    pub(in crate::sources) called: &'a str,
}

/// Why there is none.
#[derive(Debug)]
pub(in crate::sources) enum BlobError {
    /// The registry answers with this status.
    Status(u16),
    /// It is another than it should be.
    Other(Sum),
    /// Anything else.
    Source(SourceError),
}

impl From<SourceError> for BlobError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl Blob<'_> {
    /// The blob at its beginning: what is kept of it, or what the registry has.
    pub(in crate::sources) fn fetch(
        &self,
        usage: CacheUse,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<File, BlobError> {
        let transfer = Transfer {
            url: self.url,
            headers: self.headers,
            guard: Some(self.guard),
            most: self.size,
            proxy: self.proxy,
            report,
            cancel,
        };
        let wanted = self.sum.filter(|_| usage != CacheUse::Skip);
        let mut file = if let Some(sum) = wanted {
            let shelf = Shelf::lock_sum(sum, self.called, places, report, cancel)?;
            self.kept(&transfer, usage, sum, &shelf, places)?
        } else {
            report.phase(&format!("downloading {}", self.called));
            let mut part = Part {
                file: store::nameless(places)?,
                validators: Validators::default(),
                keep: &|_| Ok(()),
            };
            let fetched = transfer.fetch(&mut part, &Validators::default());
            self.check(fetched, &places.cache)?;
            part.file
        };
        let rewound = file.rewind();
        rewound.map_err(|error| SourceError::io("read", &places.cache, error))?;
        Ok(file)
    }

    fn kept(
        &self,
        transfer: &Transfer<'_>,
        usage: CacheUse,
        sum: Sum,
        shelf: &Shelf,
        places: &Places,
    ) -> Result<File, BlobError> {
        let known = shelf.known().filter(|(_, known)| known.sum() == Some(sum));
        if let Some((file, _)) = known.filter(|_| usage == CacheUse::Use) {
            transfer.report.phase(&format!("using {} that is kept", self.called));
            return Ok(file);
        }
        transfer.report.phase(&format!("downloading {}", self.called));
        let (file, validators) = shelf.part()?;
        let mut part = Part {
            file,
            validators,
            keep: &|validators| shelf.keep_validators(validators),
        };
        let fetched = transfer.fetch(&mut part, &Validators::default());
        let goes_on = matches!(fetched, Err(TransferError::Cancelled(_) | TransferError::Server(_)));
        if let Err(error) = self.check(fetched, &places.cache) {
            if !goes_on || part.validators.strong().is_none() {
                shelf.drop_part();
            }
            return Err(error);
        }
        let known = Known {
            url: format!("sha256:{sum}"),
            validators: part.validators,
            sha256: sum.to_string(),
            created: jiff::Timestamp::now(),
        };
        shelf.finish(&part.file, &known)?;
        Ok(part.file)
    }

    fn check(&self, fetched: Result<Fetched, TransferError>, cache: &Path) -> Result<(), BlobError> {
        match fetched {
            Ok(Fetched::Whole(sum)) if self.sum.is_none_or(|wanted| wanted == sum) => Ok(()),
            Ok(Fetched::Whole(sum)) => Err(BlobError::Other(sum)),
            Ok(Fetched::Unchanged) => Err(unasked(self.url).into()),
            Err(TransferError::Missing(status)) => Err(BlobError::Status(status)),
            Err(error) => Err(told(error, self.url, cache).into()),
        }
    }
}

/// Forgets a blob that was kept: it is another by now.
pub(in crate::sources) fn forget_blob(sum: Sum, places: &Places, report: &dyn Report, cancel: &Cancel) {
    // What cannot be removed is found out again.
    if let Ok(shelf) = Shelf::lock_sum(sum, "a layer", places, report, cancel) {
        shelf.drop_file();
    }
}
