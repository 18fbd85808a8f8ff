//! A file from a web server, checked before anything is made of it.
//!
//! `answer` is one request, `transfer` a file that takes several, `store` what is kept, `sums` and `signed` what vouches for it.

mod answer;
mod blob;
mod guard;
mod signed;
mod store;
mod sums;
#[cfg(test)]
pub(super) mod tests;
mod transfer;

use std::fs::File;
use std::io::{self, Seek as _};
use std::iter;
use std::path::{Path, PathBuf};

pub(super) use blob::{Asked, Blob, BlobError, ask, forget_blob};
pub(super) use guard::Guard;
pub(super) use signed::{keys_for, names, pins_of};
pub use store::{Download, clear, entries};

use self::answer::Validators;
use self::signed::Vouched;
use self::store::{Known, Shelf};
use self::transfer::{Fetched, Part, Transfer, TransferError};
use super::digest::Digest;
use super::sum::Sum;
use super::url::Url;
use super::{CacheUse, Places, SourceError};
use crate::machine::{Cancel, Report};

/// What has to vouch for a download.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// A signature, if a key is known; else a list of checksums beside it, if there is one.
    #[default]
    Offered,
    /// A signature by a key that is known, over it or over a list of checksums, else it is not taken.
    Signature,
    /// A list of checksums, else it is not taken.
    Checksum,
    /// Nothing: lists are not asked for.
    No,
}

/// How a file is downloaded.
#[derive(Clone, Debug, Default)]
pub struct DownloadOptions {
    /// URL of a proxy; that of the environment if `None`.
    pub proxy: Option<String>,
    /// How the cache is used.
    pub cache: CacheUse,
    /// What has to vouch for it.
    pub verify: Verify,
    /// A file of keys by one of which it has to be signed, besides those that are pinned.
    pub keyring: Option<PathBuf>,
}

/// The digest that a file must have, and who says so.
pub(super) struct Demand {
    pub(super) digest: Digest,
    pub(super) by: String,
    /// Whether nobody on the way can have changed it.
    pub(super) safe: bool,
    /// Whether a key that is known vouches for it.
    pub(super) signed: bool,
}

impl Demand {
    pub(super) fn given(sum: Sum) -> Self {
        Self {
            digest: Digest::Sha256(sum),
            by: "--sha256".to_owned(),
            safe: true,
            signed: false,
        }
    }

    /// Compares it with one of the same kind; of another kind nothing can be told.
    pub(super) fn check(&self, url: &Url, found: Digest) -> Result<(), SourceError> {
        if found == self.digest || found.kind() != self.digest.kind() {
            return Ok(());
        }
        Err(SourceError::WrongSum {
            url: url.to_string(),
            wanted: Box::new(self.digest),
            by: self.by.clone(),
            found: Box::new(found),
        })
    }

    /// Compares it with that of a file, of which one is known already. The file is read once more for another.
    fn check_file(&self, transfer: &Transfer<'_>, file: &mut File, sum: Sum, cache: &Path) -> Result<(), SourceError> {
        let found = match self.digest {
            Digest::Sha256(_) => Digest::Sha256(sum),
            long @ Digest::Sha512(_) => {
                transfer.report.phase(&format!("checking {}", transfer.url.file_name()));
                let read = file.rewind().and_then(|()| long.of_file(file, transfer.cancel));
                let read = read.map_err(|error| SourceError::io("read", cache, error))?;
                let Some((found, again)) = read else {
                    return Err(crate::machine::Cancelled.into());
                };
                // Whoever changes what is kept cannot pass by one of the two.
                if again != sum {
                    return Err(SourceError::io(
                        "read",
                        cache,
                        io::Error::other("it has changed meanwhile"),
                    ));
                }
                found
            }
        };
        self.check(transfer.url, found)
    }
}

/// The file at `url`, at its beginning, and its sum, which was compared with `sum`, or with what vouches for it.
pub(super) fn fetch(
    url: &Url,
    options: &DownloadOptions,
    sum: Option<Sum>,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(File, Sum), SourceError> {
    fetch_as(url, options, sum.map(Demand::given), places, report, cancel)
}

/// A file of at most `max` bytes that is not kept, and that nothing vouches for; `None` if there is none.
pub(super) fn small(
    url: &Url,
    max: u64,
    options: &DownloadOptions,
    cancel: &Cancel,
) -> Result<Option<Vec<u8>>, SourceError> {
    let got = transfer(url, options, &(), cancel).small(max);
    got.map_err(|error| told(error, url, Path::new("")))
}

/// The same, of which a sum is known from elsewhere.
pub(super) fn fetch_as(
    url: &Url,
    options: &DownloadOptions,
    given: Option<Demand>,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(File, Sum), SourceError> {
    let is_signed = given.as_ref().is_some_and(|demand| demand.signed);
    let keyrings = if is_signed {
        Vec::new()
    } else {
        keys_for(url, options, places, report)?
    };
    let (demands, signature): (Vec<Demand>, _) = match (given, keyrings.is_empty()) {
        (None, true) => (Vec::from_iter(offered(url, options, report, cancel)?), None),
        (given, true) => (Vec::from_iter(given), None),
        (given, false) => match signed::find(url, keyrings, options, report, cancel)? {
            Vouched::File(signature) => (Vec::from_iter(given), Some(signature)),
            Vouched::List(list) => {
                if let Some(given) = &given {
                    given.check(url, list.digest)?;
                }
                (iter::once(list).chain(given).collect(), None)
            }
        },
    };
    let transfer = transfer(url, options, report, cancel);
    let fetched = if options.cache == CacheUse::Skip {
        fetch_nameless(&transfer, &demands, places)
    } else {
        let shelf = Shelf::lock(url, places, report, cancel)?;
        fetch_kept(&transfer, &demands, options.cache, &shelf, &places.cache)
    };
    let (mut file, sum) = fetched?;
    if let Some(signature) = &signature {
        report.phase(&format!("checking the signature of {}", url.file_name()));
        let signer = signature.check(&file, url, cancel).map_err(SourceError::from);
        let signer = signer.inspect_err(|error| {
            if options.cache != CacheUse::Skip && !matches!(error, SourceError::Cancelled(_)) {
                forget(url, sum, places, report, cancel);
            }
        })?;
        report.phase(&format!("it is signed by {signer}"));
    }
    let demand = demands.first();
    if let Some(demand) = demand {
        report.phase(&format!(
            "its {} sum is the one of {}",
            demand.digest.called(),
            demand.by
        ));
    }
    match demand {
        Some(Demand { safe: true, .. }) => {}
        _ if signature.is_some() => {}
        Some(demand) => report.warn(&format!(
            "anybody on the way may have changed both '{url}' and {}: give its sum with --sha256",
            demand.by
        )),
        None if url.is_https() => report.phase("nothing vouches for it but its server"),
        None => report.warn(&format!(
            "nothing vouches for '{url}', and anybody on the way may have changed it: give its sum with --sha256"
        )),
    }
    file.rewind()
        .map_err(|error| SourceError::io("read", &places.cache, error))?;
    Ok((file, sum))
}

/// What [`fetch`] would do.
pub(super) fn plan(
    url: &Url,
    options: &DownloadOptions,
    sum: Option<Sum>,
    places: &Places,
) -> Result<Vec<String>, SourceError> {
    if sum.is_none() {
        check_safe(url, options.verify)?;
    }
    let keyrings = keys_for(url, options, places, &())?;
    let kept = match options.cache {
        CacheUse::Skip => String::new(),
        CacheUse::Use => format!(
            ", or use what is kept of it in '{}'",
            places.cache.join("downloads").display()
        ),
        CacheUse::Refresh => format!(" to '{}'", places.cache.join("downloads").display()),
    };
    let mut steps = vec![format!("download '{url}'{kept}")];
    let lists = || {
        let (own, all) = LISTS[0];
        format!(
            "'{}' or '{}', or in those of SHA-512",
            url.with_ending(own),
            url.beside(all)
        )
    };
    if !keyrings.is_empty() {
        steps.push(format!(
            "check that it is signed by a key of {}",
            signed::names(&keyrings)
        ));
    }
    steps.extend(match (sum, options.verify) {
        (Some(sum), _) => Some(format!("check that its SHA-256 sum is {sum}")),
        (None, _) if !keyrings.is_empty() => None,
        (None, Verify::Offered) => Some(format!("check its sum, if it stands in {}", lists())),
        (None, Verify::Checksum) => Some(format!("check its sum, which has to stand in {}", lists())),
        (None, Verify::Signature | Verify::No) => None,
    });
    Ok(steps)
}

/// Refuses what could never be checked: whoever changes a file on its way changes the list beside it, too.
fn check_safe(url: &Url, verify: Verify) -> Result<(), SourceError> {
    if verify == Verify::Checksum && !url.is_https() {
        return Err(SourceError::UnsafeChecksum { url: url.to_string() });
    }
    Ok(())
}

/// Forgets what is kept of `url`, if it is what `sum` is of: it was no archive after all.
pub(super) fn forget(url: &Url, sum: Sum, places: &Places, report: &dyn Report, cancel: &Cancel) {
    // What cannot be removed is found out again.
    if let Ok(shelf) = Shelf::lock(url, places, report, cancel)
        && shelf.known().and_then(|(_, known)| known.sum()) == Some(sum)
    {
        shelf.drop_file();
    }
}

fn transfer<'a>(
    url: &'a Url,
    options: &'a DownloadOptions,
    report: &'a dyn Report,
    cancel: &'a Cancel,
) -> Transfer<'a> {
    Transfer {
        url,
        headers: &[],
        guard: None,
        most: None,
        proxy: options.proxy.as_deref(),
        report,
        cancel,
    }
}

/// Finds the digest of a file in a list, by its name.
type Find = fn(&[u8], &str) -> Option<Digest>;

/// The lists that may stand beside a file: of it alone, by the ending, and of all in its directory.
const LISTS: [(&str, &str); 2] = [(".sha256", "SHA256SUMS"), (".sha512", "SHA512SUMS")];

/// The sum that stands in a list beside the file.
fn offered(
    url: &Url,
    options: &DownloadOptions,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Option<Demand>, SourceError> {
    if options.verify == Verify::No {
        return Ok(None);
    }
    check_safe(url, options.verify)?;
    report.phase(&format!("asking for the checksum of {}", url.file_name()));
    let lists = LISTS.iter().flat_map(|(ending, name)| -> [(Url, Find, bool); 2] {
        [
            (url.with_ending(ending), sums::of_its_file, true),
            (url.beside(name), sums::of_file, false),
        ]
    });
    for (list, find, is_own) in lists {
        let got = transfer(&list, options, &(), cancel).small(sums::MAX);
        let bytes = match got.map_err(|error| told(error, &list, Path::new(""))) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            // One that need not be there need not be readable.
            Err(error) if options.verify == Verify::Offered && !matches!(error, SourceError::Cancelled(_)) => {
                report.warn(&format!("{error}; going on without it"));
                continue;
            }
            Err(error) => return Err(error),
        };
        match find(&bytes, &url.plain_file_name()) {
            Some(digest) => {
                return Ok(Some(Demand {
                    digest,
                    by: format!("'{list}'"),
                    safe: list.is_https(),
                    signed: false,
                }));
            }
            None if is_own => report.warn(&format!("'{list}' has no sum of it")),
            None => {}
        }
    }
    if options.verify == Verify::Checksum {
        return Err(SourceError::NoChecksum { url: url.to_string() });
    }
    Ok(None)
}

fn fetch_nameless(transfer: &Transfer<'_>, demands: &[Demand], places: &Places) -> Result<(File, Sum), SourceError> {
    transfer
        .report
        .phase(&format!("downloading {}", transfer.url.file_name()));
    let mut part = Part {
        file: store::nameless(places)?,
        validators: Validators::default(),
        keep: &|_| Ok(()),
    };
    let fetched = transfer.fetch(&mut part, &Validators::default());
    let sum = match fetched.map_err(|error| told(error, transfer.url, &places.cache))? {
        Fetched::Whole(sum) => sum,
        Fetched::Unchanged => return Err(unasked(transfer.url)),
    };
    check_all(demands, transfer, &mut part.file, sum, &places.cache)?;
    Ok((part.file, sum))
}

fn fetch_kept(
    transfer: &Transfer<'_>,
    demands: &[Demand],
    usage: CacheUse,
    shelf: &Shelf,
    cache: &Path,
) -> Result<(File, Sum), SourceError> {
    let (url, report) = (transfer.url, transfer.report);
    let known = shelf.known().filter(|_| usage == CacheUse::Use);
    let mut known = known.and_then(|(file, known)| Some((file, known.sum()?, known)));
    // Whatever the server has by now: that is what was asked for.
    if let Some((file, sum, _)) = &mut known
        && !demands.is_empty()
        && check_all(demands, transfer, file, *sum, cache).is_ok()
    {
        report.phase(&format!("using the download of {} that is kept", url.file_name()));
        return known.map(|(file, sum, _)| (file, sum)).ok_or_else(|| unasked(url));
    }
    report.phase(&format!("downloading {}", url.file_name()));
    if usage == CacheUse::Refresh {
        shelf.drop_part();
    }
    let (file, validators) = shelf.part()?;
    let mut part = Part {
        file,
        validators,
        keep: &|validators| shelf.keep_validators(validators),
    };
    let former = known.as_ref().map(|(_, _, known)| known.validators.clone());
    let fetched = transfer.fetch(&mut part, &former.unwrap_or_default());
    let (mut file, sum) = match (fetched, known) {
        (Ok(Fetched::Whole(sum)), _) => {
            if let Err(error) = check_all(demands, transfer, &mut part.file, sum, cache) {
                shelf.drop_part();
                return Err(error);
            }
            let known = Known {
                url: url.to_string(),
                validators: part.validators,
                sha256: sum.to_string(),
                created: jiff::Timestamp::now(),
            };
            shelf.finish(&part.file, &known)?;
            return Ok((part.file, sum));
        }
        (Ok(Fetched::Unchanged), Some((file, sum, _))) => {
            shelf.drop_part();
            report.phase(&format!("using the download of {} that is kept", url.file_name()));
            (file, sum)
        }
        (Ok(Fetched::Unchanged), None) => return Err(unasked(url)),
        (Err(error), _) => {
            // Only what another call can go on with is worth its space.
            let goes_on = matches!(error, TransferError::Cancelled(_) | TransferError::Server(_));
            if !goes_on || part.validators.strong().is_none() {
                shelf.drop_part();
            }
            return Err(told(error, url, cache));
        }
    };
    if let Err(error) = check_all(demands, transfer, &mut file, sum, cache) {
        shelf.drop_file();
        return Err(error);
    }
    Ok((file, sum))
}

/// Looks whether a file is what all of these say.
fn check_all(
    demands: &[Demand],
    transfer: &Transfer<'_>,
    file: &mut File,
    sum: Sum,
    cache: &Path,
) -> Result<(), SourceError> {
    demands
        .iter()
        .try_for_each(|demand| demand.check_file(transfer, file, sum, cache))
}

/// A server that says that nothing has changed, of what it was not asked that.
fn unasked(url: &Url) -> SourceError {
    SourceError::Download {
        url: url.to_string(),
        reason: "it says that nothing has changed, and was not asked that".to_owned(),
        tls: false,
    }
}

fn told(error: TransferError, url: &Url, cache: &Path) -> SourceError {
    let failed = |reason| SourceError::Download {
        url: url.to_string(),
        reason,
        tls: false,
    };
    match error {
        TransferError::Tls(reason) => SourceError::Download {
            url: url.to_string(),
            reason,
            tls: true,
        },
        TransferError::Cancelled(cancelled) => cancelled.into(),
        TransferError::Server(reason) => failed(reason),
        TransferError::Large(max) => failed(format!("it has more than {max} bytes")),
        TransferError::Missing(status @ (404 | 410)) => failed(format!("there is no such file (HTTP status {status})")),
        TransferError::Missing(status) => failed(format!("its server does not give it (HTTP status {status})")),
        TransferError::Write(error) => SourceError::io("write to", cache, error),
        TransferError::NoRoom(size, room) => SourceError::NoRoom {
            url: url.to_string(),
            size,
            room,
            path: cache.to_owned(),
        },
    }
}
