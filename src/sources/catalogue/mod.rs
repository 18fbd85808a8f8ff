//! Catalogues of images, as linuxcontainers.org has one: `images:debian/13`.
//!
//! `index` is what their documents say, `name` what images are called. A file is downloaded, checked and kept as any other; its sum
//! is the one of the catalogue, always.

mod error;
mod index;
mod name;
#[cfg(test)]
mod tests;

pub use error::CatalogueError;
pub use index::{Archive, Image};
pub use name::ImageName;

use super::digest::Digest;
use super::download::{self, Demand, DownloadOptions};
use super::trust::{TrustError, signed_text};
use super::url::Url;
use super::{Options, Places, SourceError, bootstrap};
use crate::machine::{Cancel, Report};

/// The catalogue that is asked if nobody says which.
pub const SERVER: &str = "https://images.linuxcontainers.org";

/// The largest index and the largest list of images, in bytes, and the most lists.
const INDEX_MAX: u64 = 8 << 20;
const LIST_MAX: u64 = 32 << 20;
const LISTS: usize = 8;

/// Which catalogue, and for which processor.
#[derive(Clone, Debug, Default)]
pub struct CatalogueOptions {
    /// The server's root; [`SERVER`] if `None`.
    pub server: Option<String>,
    /// Debian's name of the processor; the host's if `None`.
    pub arch: Option<String>,
}

impl CatalogueOptions {
    fn server(&self) -> Result<Url, SourceError> {
        let text = self.server.as_deref().unwrap_or(SERVER);
        text.parse().map_err(|reason| SourceError::BadUrl {
            given: super::mirror::without_password(&super::source::shown(text)),
            reason,
        })
    }

    /// For which processor, in Debian's words.
    #[must_use]
    pub fn arch(&self) -> &str {
        self.arch.as_deref().unwrap_or_else(|| bootstrap::host_arch())
    }
}

/// What a catalogue has.
#[derive(Debug)]
pub struct Catalogue {
    server: Url,
    /// All images, for all processors.
    pub images: Vec<Image>,
    /// What is said of the sums in it.
    by: String,
    safe: bool,
    signed: bool,
}

/// Asks a server for its catalogue. It has to be signed where a key is known for it.
pub fn read(
    options: &CatalogueOptions,
    download: &DownloadOptions,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Catalogue, SourceError> {
    let server = options.server()?;
    report.phase(&format!("asking '{server}' for its catalogue"));
    let documents = Documents {
        server: &server,
        download,
        places,
        report,
        cancel,
    };
    let index = documents.get("streams/v1/index.json", INDEX_MAX)?;
    let no_catalogue = |url: &Url, reason| {
        SourceError::from(CatalogueError::NoCatalogue {
            url: url.to_string(),
            reason,
        })
    };
    let paths = index::lists(&index.bytes).map_err(|reason| no_catalogue(&index.url, reason))?;
    let (mut images, mut by, mut signers) = (Vec::new(), Vec::new(), index.signer.into_iter().collect::<Vec<_>>());
    for path in paths.iter().take(LISTS) {
        let list = documents.get(path, LIST_MAX)?;
        images.extend(index::images(&list.bytes).map_err(|reason| no_catalogue(&list.url, reason))?);
        by.push(format!("'{}'", list.url));
        signers.extend(list.signer);
    }
    let by = by.join(", ");
    Ok(Catalogue {
        safe: server.is_https() || !signers.is_empty(),
        signed: !signers.is_empty(),
        by: signers
            .first()
            .map_or(by.clone(), |signer| format!("{by}, signed by {signer}")),
        server,
        images,
    })
}

/// A document, checked as far as a key is known.
struct Document {
    url: Url,
    bytes: Vec<u8>,
    signer: Option<String>,
}

struct Documents<'a> {
    server: &'a Url,
    download: &'a DownloadOptions,
    places: &'a Places,
    report: &'a dyn Report,
    cancel: &'a Cancel,
}

impl Documents<'_> {
    /// What has to be signed is the document of that name with the ending `.sjson`, in one with its signature.
    fn get(&self, path: &str, max: u64) -> Result<Document, SourceError> {
        // One that lies elsewhere on the server may be another's.
        let keyrings = download::keys_for(&below(self.server, path)?, self.download, self.places, self.report)?;
        let is_signed = !keyrings.is_empty();
        let path = match path.strip_suffix(".json") {
            Some(stem) if is_signed => format!("{stem}.sjson"),
            _ => path.to_owned(),
        };
        let url = below(self.server, &path)?;
        let got = download::small(&url, max, self.download, self.cancel)?;
        let bytes = got.ok_or_else(|| {
            if is_signed {
                return SourceError::from(TrustError::Unsigned {
                    url: self.server.to_string(),
                    looked: format!("there is no '{url}'"),
                    keys: download::names(&keyrings),
                });
            }
            SourceError::Download {
                url: url.to_string(),
                reason: "there is no such file: is it a catalogue?".to_owned(),
                tls: false,
            }
        })?;
        if !is_signed {
            return Ok(Document {
                url,
                bytes,
                signer: None,
            });
        }
        let name = url.to_string();
        let (text, signer) = signed_text(&bytes, &keyrings, &name, self.cancel)?.ok_or(TrustError::NoSignature {
            signature: name,
            reason: "it is not signed",
        })?;
        Ok(Document {
            url,
            bytes: text.into_bytes(),
            signer: Some(signer.to_string()),
        })
    }
}

/// What a server has at a path that it tells itself: nowhere else.
fn below(server: &Url, path: &str) -> Result<Url, SourceError> {
    server.below(path).ok_or_else(|| {
        CatalogueError::NoCatalogue {
            url: server.to_string(),
            reason: format!("'{}' is no path below it", super::source::shown(path)),
        }
        .into()
    })
}

/// A file that was found.
pub(super) struct Found {
    pub(super) url: Url,
    pub(super) demand: Demand,
    /// Whether it is a squashfs image, and no tar archive.
    pub(super) is_squashfs: bool,
}

/// Asks for the file that an image is in its newest version.
pub(super) fn find(
    name: &ImageName,
    options: &Options,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Found, SourceError> {
    let arch = options.catalogue.arch();
    bootstrap::check_arch(arch)?;
    let catalogue = read(&options.catalogue, &options.download, places, report, cancel)?;
    let server = catalogue.server.to_string();
    let image = index::find(&catalogue.images, name.as_str(), arch, &server)?;
    let Some(archive) = &image.archive else {
        let formats: Vec<String> = image
            .formats
            .iter()
            .map(|format| super::source::shown(format))
            .collect();
        return Err(SourceError::from(CatalogueError::NoArchive {
            server,
            name: name.to_string(),
            has: formats.join(", "),
        }));
    };
    if archive.is_squashfs() && !options.archive.part.is_all() {
        let name = name.to_string();
        return Err(CatalogueError::NoPart { server, name }.into());
    }
    let shown = super::source::shown;
    report.phase(&format!("found {} of {}", shown(&image.name), shown(&image.version)));
    let url = below(&catalogue.server, &archive.path)?;
    // A signed catalogue vouches for its files, but not in place of who is pinned for them in particular.
    let own = download::pins_of(&url, places)?;
    let of_catalogue = download::pins_of(&below(&catalogue.server, "streams/v1")?, places)?;
    let signed = catalogue.signed && (own.is_empty() || own == of_catalogue);
    Ok(Found {
        url,
        is_squashfs: archive.is_squashfs(),
        demand: Demand {
            digest: Digest::Sha256(archive.sum),
            by: catalogue.by,
            safe: catalogue.safe,
            signed,
        },
    })
}

/// What [`find`] and the download of what it finds would do.
pub(super) fn plan(name: &ImageName, options: &Options, places: &Places) -> Result<Vec<String>, SourceError> {
    let arch = options.catalogue.arch();
    bootstrap::check_arch(arch)?;
    let server = options.catalogue.server()?;
    let keyrings = download::keys_for(&below(&server, "streams/v1")?, &options.download, places, &())?;
    let mut steps = vec![format!("ask catalogue '{server}' for image '{name}' for {arch}")];
    if !keyrings.is_empty() {
        steps.push(format!(
            "check that the catalogue is signed by a key of {}",
            download::names(&keyrings)
        ));
    }
    steps.push("download its newest version, or use what is kept of it".to_owned());
    steps.push("check that its SHA-256 sum is the one of the catalogue".to_owned());
    steps.extend(
        options
            .archive
            .sum
            .map(|sum| format!("check that its SHA-256 sum is {sum}")),
    );
    Ok(steps)
}
