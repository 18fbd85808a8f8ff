//! Signatures beside a download: over the file itself, or over a list that has its sum.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::transfer::TransferError;
use super::{Demand, DownloadOptions, Find, LISTS, Verify, sums, told, transfer};
use crate::machine::{Cancel, Report};
use crate::sources::trust::{Keyring, Pin, SIGNATURE_MAX, Signature, Signer, TrustError, covering, pins, signed_text};
use crate::sources::url::Url;
use crate::sources::{Places, SourceError};

/// What signatures are called, by the name of what they are over.
const OF_FILE: &[&str] = &[".asc", ".sig", ".gpg"];
const OF_LIST: &[&str] = &[".asc", ".gpg", ".sig", ".sign"];

/// What has to sign a download: by a key of each of these. None if nobody has to.
pub(in crate::sources) fn keys_for(
    url: &Url,
    options: &DownloadOptions,
    places: &Places,
    report: &dyn Report,
) -> Result<Vec<Keyring>, TrustError> {
    let pinned = pins(&places.keys);
    if let Verify::Checksum | Verify::No = options.verify {
        if let Some(pin) = pinned
            .ok()
            .as_deref()
            .and_then(|pins| covering(pins, url).into_iter().next())
        {
            report.warn(&format!(
                "the key that is pinned for '{}' is not asked: that is what --verify says",
                pin.prefix
            ));
        }
        return Ok(Vec::new());
    }
    let pinned = pinned?;
    let mut keyrings = Vec::new();
    if let Some(path) = &options.keyring {
        keyrings.push(Keyring::read(path)?);
    }
    keyrings.extend(any_of(&covering(&pinned, url)));
    if options.verify == Verify::Signature && keyrings.is_empty() {
        return Err(TrustError::NoKey { url: url.to_string() });
    }
    Ok(keyrings)
}

/// The files of the pins that count for an address.
pub(in crate::sources) fn pins_of(url: &Url, places: &Places) -> Result<Vec<PathBuf>, TrustError> {
    let pinned = pins(&places.keys)?;
    Ok(covering(&pinned, url).into_iter().map(|pin| pin.path.clone()).collect())
}

/// One keyring of the keys of several pins.
fn any_of(pins: &[&Pin]) -> Option<Keyring> {
    let (first, rest) = pins.split_first()?;
    Some(
        rest.iter()
            .fold(first.keyring.clone(), |all, pin| all.with(&pin.keyring)),
    )
}

/// What keyrings are called together.
pub(in crate::sources) fn names(keyrings: &[Keyring]) -> String {
    keyrings
        .iter()
        .map(Keyring::name)
        .collect::<Vec<_>>()
        .join(", and one of ")
}

/// What vouches for a file.
pub(super) enum Vouched {
    /// A signed list.
    List(Demand),
    /// A signature over the file.
    File(OfFile),
}

/// A signature over a file that has not come yet.
pub(super) struct OfFile {
    signature: Signature,
    /// Where it is.
    at: Url,
    keyrings: Vec<Keyring>,
}

impl OfFile {
    pub(super) fn check(&self, file: &File, url: &Url, cancel: &Cancel) -> Result<Signer, TrustError> {
        let names = (url.to_string(), self.at.to_string());
        self.signature.check(file, &self.keyrings, (&names.0, &names.1), cancel)
    }
}

/// Looks for signatures beside a file, the strongest first. The first that is one counts.
pub(super) fn find(
    url: &Url,
    keyrings: Vec<Keyring>,
    options: &DownloadOptions,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vouched, SourceError> {
    report.phase(&format!("asking for the signature of {}", url.file_name()));
    let look = Look {
        options,
        keyrings: &keyrings,
        cancel,
        noise: RefCell::default(),
    };
    for ending in OF_FILE {
        if let Some((signature, at)) = look.signature(&url.with_ending(ending))? {
            return Ok(Vouched::File(OfFile {
                signature,
                at,
                keyrings,
            }));
        }
    }
    let lists = LISTS.iter().flat_map(|(ending, name)| -> [(Url, Find); 2] {
        [
            (url.with_ending(ending), sums::of_no_other_file),
            (url.beside(name), sums::of_file),
        ]
    });
    for (list, find) in lists {
        let Some((text, signer)) = look.list(&list)? else {
            continue;
        };
        if let Some(digest) = find(&text, &url.plain_file_name()) {
            return Ok(Vouched::List(Demand {
                digest,
                by: format!("'{list}', signed by {signer}"),
                safe: true,
                signed: true,
            }));
        }
        look.note(format!("'{list}' is signed, and does not tell its sum"));
    }
    let noise = look
        .noise
        .into_inner()
        .map_or_else(String::new, |noise| format!(" ({noise})"));
    Err(SourceError::from(TrustError::Unsigned {
        url: url.to_string(),
        looked: format!(
            "there is neither '{url}.asc' (.sig, .gpg), nor is '{}' or '{}' signed, nor those of SHA-512{noise}",
            url.with_ending(LISTS[0].0),
            url.beside(LISTS[0].1)
        ),
        keys: names(&keyrings),
    }))
}

struct Look<'a> {
    options: &'a DownloadOptions,
    keyrings: &'a [Keyring],
    cancel: &'a Cancel,
    /// What was found first that is none.
    noise: RefCell<Option<String>>,
}

impl Look<'_> {
    /// A small file, if there is one. A large one is something else: something has to be found in the end.
    fn get(&self, at: &Url, max: u64) -> Result<Option<Vec<u8>>, SourceError> {
        match transfer(at, self.options, &(), self.cancel).small(max) {
            Err(TransferError::Large(_)) => Ok(None),
            got => got.map_err(|error| told(error, at, Path::new(""))),
        }
    }

    fn note(&self, what: String) {
        self.noise.borrow_mut().get_or_insert(what);
    }

    /// The signature at an address, if it is one.
    fn signature(&self, at: &Url) -> Result<Option<(Signature, Url)>, SourceError> {
        let bytes = self.get(at, SIGNATURE_MAX)?;
        Ok(bytes.and_then(|bytes| Some((self.parse(&bytes, at)?, at.clone()))))
    }

    fn parse(&self, bytes: &[u8], at: &Url) -> Option<Signature> {
        let parsed = Signature::parse(bytes);
        parsed
            .map_err(|reason| self.note(format!("'{at}' is no signature: {reason}")))
            .ok()
    }

    /// What a signed list says, and who has signed it: with a signature beside it, or in it.
    fn list(&self, list: &Url) -> Result<Option<(Vec<u8>, Signer)>, SourceError> {
        let text_in = |bytes: &[u8], at: &Url| {
            let signed = signed_text(bytes, self.keyrings, &at.to_string(), self.cancel)?;
            Ok::<_, SourceError>(signed.map(|(text, signer)| (text.into_bytes(), signer)))
        };
        let plain = self.get(list, sums::MAX)?;
        if let Some(signed) = plain.as_deref().map_or(Ok(None), |bytes| text_in(bytes, list))? {
            return Ok(Some(signed));
        }
        for ending in OF_LIST {
            let at = list.with_ending(ending);
            let Some(bytes) = self.get(&at, sums::MAX)? else {
                continue;
            };
            // One whose text stands with its signature needs no other.
            if let Some(signed) = text_in(&bytes, &at)? {
                return Ok(Some(signed));
            }
            if let (Some(plain), Some(signature)) = (&plain, self.parse(&bytes, &at)) {
                let names = (list.to_string(), at.to_string());
                let signer = signature.check_bytes(plain, self.keyrings, (&names.0, &names.1), self.cancel)?;
                return Ok(Some((plain.clone(), signer)));
            }
        }
        Ok(None)
    }
}
