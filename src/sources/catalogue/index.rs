//! The documents of a catalogue, as simplestreams has them. No I/O.
//!
//! See <https://canonical-simplestreams.readthedocs.io>; the items are those of linuxcontainers.org. Strangers write all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::CatalogueError;
use crate::sources::source::shown;
use crate::sources::sum::Sum;

/// How alike a name must be to one that there is, to be offered; and how many are.
const ALIKE: f64 = 0.75;
const OFFERED: usize = 3;

/// The longest name that is heeded, in bytes, and how many are looked at for one that is like another.
const NAME_MAX: usize = 128;
const LOOKED_AT: usize = 50_000;

/// An image: of one release, variant and processor, in its newest version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The shortest of its names: `debian/13`.
    pub name: String,
    /// All names, as the catalogue has them.
    pub aliases: Vec<String>,
    /// The distribution: `Debian`.
    pub os: String,
    /// The release: `trixie`.
    pub release: String,
    /// `default`, `cloud`; empty if there is none.
    pub variant: String,
    /// Debian's name of the processor.
    pub arch: String,
    /// When it was made, as the catalogue has it: `20251120_05:24`.
    pub version: String,
    /// What is taken of it; `None` if there is nothing among its files that can be.
    pub archive: Option<Archive>,
    /// What its files are: `root.tar.xz`, `squashfs`.
    pub formats: Vec<String>,
}

/// A file of an image: its root filesystem, as a tar archive or a squashfs image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Below the server's root.
    pub path: String,
    /// What it has to be.
    pub sum: Sum,
    /// Bytes, as the catalogue says.
    pub size: Option<u64>,
    /// What it is: `root.tar.xz`.
    pub format: String,
}

/// What squashfs images are called there; what leads from one to the next is not.
const SQUASHFS: [&str; 2] = ["squashfs", "root.squashfs"];

impl Archive {
    /// Whether it is a squashfs image, and no tar archive.
    pub(super) fn is_squashfs(&self) -> bool {
        SQUASHFS.contains(&self.format.as_str())
    }
}

#[derive(Deserialize)]
struct Index {
    index: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    datatype: String,
    #[serde(default)]
    path: String,
}

/// The most products of a list, versions of a product and files of a version.
const PRODUCTS: usize = 50_000;
const VERSIONS: usize = 1_000;
const FILES: usize = 100;

/// What is read of an object is folded while it is read: a few bytes each may stand for kilobytes.
fn fold<'de, D: Deserializer<'de>, T: Deserialize<'de>, S: Default>(
    deserializer: D,
    most: usize,
    take: impl FnMut(&mut S, String, T),
) -> Result<S, D::Error> {
    struct Folding<T, S, F>(usize, F, PhantomData<(T, S)>);
    impl<'de, T: Deserialize<'de>, S: Default, F: FnMut(&mut S, String, T)> Visitor<'de> for Folding<T, S, F> {
        type Value = S;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<S, A::Error> {
            let mut state = S::default();
            while let Some((name, value)) = map.next_entry()? {
                self.0 = self
                    .0
                    .checked_sub(1)
                    .ok_or_else(|| A::Error::custom("it has too many entries"))?;
                (self.1)(&mut state, name, value);
            }
            Ok(state)
        }
    }
    deserializer.deserialize_map(Folding(most, take, PhantomData))
}

#[derive(Deserialize)]
struct List {
    products: Products,
}

#[derive(Default)]
struct Products(Vec<Image>);

impl<'de> Deserialize<'de> for Products {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fold(deserializer, PRODUCTS, |all: &mut Self, _, product| {
            all.0.extend(image(product));
        })
    }
}

#[derive(Deserialize)]
struct Product {
    #[serde(default)]
    aliases: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    release: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    arch: String,
    #[serde(default)]
    versions: Versions,
}

/// Versions begin with the date: the last is the newest. One that is just being made may have no archive yet.
#[derive(Default)]
struct Versions {
    newest: Option<(String, Version)>,
    found: Option<(String, Version)>,
}

impl<'de> Deserialize<'de> for Versions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let is_newer =
            |than: &Option<(String, Version)>, name: &str| than.as_ref().is_none_or(|it| it.0.as_str() < name);
        fold(deserializer, VERSIONS, |all: &mut Self, name, version: VersionOf| {
            if version.items.archive.is_some() && is_newer(&all.found, &name) {
                all.found = Some((name.clone(), version.items.clone()));
            }
            if is_newer(&all.newest, &name) {
                all.newest = Some((name, version.items));
            }
        })
    }
}

#[derive(Deserialize)]
struct VersionOf {
    #[serde(default)]
    items: Version,
}

/// The root filesystem among the files of a version, and what there is.
#[derive(Clone, Default)]
struct Version {
    archive: Option<Archive>,
    formats: Vec<String>,
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fold(deserializer, FILES, |version: &mut Self, _, item: Item| {
            // A tar archive needs nothing of this kernel.
            let is_better = |than: &Archive, found: &Archive| than.is_squashfs() && !found.is_squashfs();
            if let Some(found) = archive(&item)
                && version.archive.as_ref().is_none_or(|than| is_better(than, &found))
            {
                version.archive = Some(found);
            }
            version
                .formats
                .extend(Some(item.ftype).filter(|format| format.len() <= NAME_MAX));
        })
    }
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    ftype: String,
    #[serde(default)]
    path: String,
    sha256: Option<String>,
    size: Option<u64>,
}

/// Where the lists of images are, by the index: paths below the server's root.
pub(super) fn lists(index: &[u8]) -> Result<Vec<String>, String> {
    let index: Index = serde_json::from_slice(index).map_err(|error| shown(&error.to_string()))?;
    let images = index.index.into_values();
    let paths: Vec<String> = images
        .filter(|entry| entry.datatype == "image-downloads" && !entry.path.is_empty())
        .map(|entry| entry.path)
        .collect();
    if paths.is_empty() {
        return Err("its index has no images".to_owned());
    }
    Ok(paths)
}

/// The images of a list. What has no version is left out.
pub(super) fn images(list: &[u8]) -> Result<Vec<Image>, String> {
    let list: List = serde_json::from_slice(list).map_err(|error| shown(&error.to_string()))?;
    Ok(list.products.0)
}

fn image(product: Product) -> Option<Image> {
    let (newest, last) = product.versions.newest?;
    let formats = last.formats;
    let (version, archive) = match product.versions.found {
        Some((version, found)) => (version, found.archive),
        None => (newest, None),
    };
    let words = [&version, &product.os, &product.release, &product.variant, &product.arch];
    if words.iter().any(|word| word.len() > NAME_MAX) {
        return None;
    }
    let mut aliases: Vec<String> = product
        .aliases
        .split(',')
        .map(|alias| alias.trim().to_owned())
        .filter(|alias| !alias.is_empty() && alias.len() <= NAME_MAX)
        .collect();
    if aliases.is_empty() {
        let parts = [&product.os, &product.release, &product.variant].map(|part| part.to_lowercase());
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        aliases.push(parts.join("/"));
        aliases.retain(|name| name.len() <= NAME_MAX);
    }
    let name = aliases
        .iter()
        .min_by_key(|alias| (alias.len(), (*alias).clone()))?
        .clone();
    Some(Image {
        name,
        aliases,
        os: product.os,
        release: product.release,
        variant: product.variant,
        arch: product.arch,
        version,
        archive,
        formats,
    })
}

/// A file that is a root filesystem. One without a sum is none: nothing would vouch for it.
fn archive(item: &Item) -> Option<Archive> {
    let is_tar = item.ftype == "root.tar" || item.ftype.starts_with("root.tar.");
    let is_root = is_tar || SQUASHFS.contains(&item.ftype.as_str());
    Some(Archive {
        path: Some(&item.path).filter(|path| is_root && !path.is_empty())?.clone(),
        sum: item.sha256.as_deref()?.parse().ok()?,
        size: item.size,
        format: item.ftype.clone(),
    })
}

impl Image {
    /// Whether one of its names matches: as a pattern, or by a part if it has nothing of one.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        let pattern = pattern.to_lowercase();
        let is_plain = !pattern.contains(['*', '?', '[']);
        let glob = glob::Pattern::new(&pattern).ok();
        self.aliases.iter().map(|alias| alias.to_lowercase()).any(|alias| {
            let by_glob = glob.as_ref().is_some_and(|glob| glob.matches(&alias));
            by_glob || is_plain && alias.contains(&pattern)
        })
    }

    fn is_called(&self, name: &str) -> bool {
        let full = format!("{}/{}/{}", self.os, self.release, self.variant);
        let mut names = self.aliases.iter().map(String::as_str).chain([full.as_str()]);
        names.any(|alias| alias.eq_ignore_ascii_case(name))
    }

    /// Whether it is the usual one of its release.
    fn is_default(&self) -> bool {
        ["", "default"].contains(&self.variant.as_str())
    }

    /// The number of its release, as far as it has one: 13, 24.04.
    fn number(&self) -> Option<Vec<u32>> {
        let words = self.aliases.iter().filter_map(|alias| alias.split('/').nth(1));
        let number = |word: &str| {
            word.split('.')
                .map(|part| part.parse().ok())
                .collect::<Option<Vec<u32>>>()
        };
        words.chain([self.release.as_str()]).find_map(number)
    }
}

/// The image that a name means on a processor. A distribution alone is its release of the highest number.
pub(super) fn find<'a>(images: &'a [Image], name: &str, arch: &str, server: &str) -> Result<&'a Image, CatalogueError> {
    let here = || images.iter().filter(|image| image.arch == arch);
    if let Some(image) = here().find(|image| image.is_called(name)) {
        return Ok(image);
    }
    let of_distro = here().filter(|image| image.is_default() && image.os.eq_ignore_ascii_case(name));
    if let Some(image) = of_distro.max_by_key(|image| (image.number(), image.name.clone())) {
        return Ok(image);
    }
    let mut others: Vec<String> = images
        .iter()
        .filter(|image| image.is_called(name))
        .map(|image| crate::machine::text::printable(&image.arch))
        .collect();
    others.sort();
    others.dedup();
    Err(CatalogueError::Unknown {
        server: server.to_owned(),
        name: name.to_owned(),
        arch: arch.to_owned(),
        near: near(here(), name),
        others,
    })
}

/// Names that are like one that there is not.
fn near<'a>(images: impl Iterator<Item = &'a Image>, name: &str) -> Vec<String> {
    let name = name.to_lowercase();
    let mut near: Vec<(f64, &str)> = images
        .flat_map(|image| &image.aliases)
        .take(LOOKED_AT)
        .map(|alias| {
            (
                strsim::normalized_damerau_levenshtein(&name, &alias.to_lowercase()),
                alias.as_str(),
            )
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    near.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
    near.dedup_by(|one, other| one.1 == other.1);
    near.into_iter()
        .take(OFFERED)
        .map(|(_, alias)| crate::machine::text::printable(alias))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "6667b2d1aab6a00caa5aee5af8ad9f1465e567abf1c209d15727d57b3e8f6e5f";

    /// As linuxcontainers.org has it.
    fn list() -> Vec<Image> {
        let product = |os: &str, aliases: &str, release: &str, arch: &str, variant: &str| {
            let item = |ftype: &str| {
                format!(
                    r#""{ftype}": {{"ftype": "{ftype}", "path": "p/{release}/{ftype}", "sha256": "{SUM}", "size": 7}}"#
                )
            };
            let (tar, squashfs, meta) = (item("root.tar.xz"), item("squashfs"), item("lxd.tar.xz"));
            let delta = item("squashfs.vcdiff");
            format!(
                r#""{os}:{release}:{arch}:{variant}": {{"aliases": "{aliases}", "os": "{os}", "release": "{release}", "arch": "{arch}",
                "variant": "{variant}", "requirements": {{}}, "versions": {{"20240101_05:24": {{"items": {{{tar}, {squashfs}}}}},
                "20240102_05:24": {{"items": {{{meta}, {squashfs}, {tar}}}}}, "20240103_05:24": {{"items": {{{delta}}}}}}}}}"#
            )
        };
        let products = [
            product(
                "Debian",
                "debian/bookworm/default,debian/bookworm,debian/12/default,debian/12",
                "bookworm",
                "amd64",
                "default",
            ),
            product(
                "Debian",
                "debian/trixie/default,debian/trixie,debian/13/default,debian/13",
                "trixie",
                "amd64",
                "default",
            ),
            product(
                "Debian",
                "debian/trixie/cloud,debian/13/cloud",
                "trixie",
                "amd64",
                "cloud",
            ),
            product("Debian", "debian/sid/default,debian/sid", "sid", "amd64", "default"),
            product("Alpine", "alpine/3.9/default,alpine/3.9", "3.9", "amd64", "default"),
            product("Alpine", "alpine/3.20/default,alpine/3.20", "3.20", "amd64", "default"),
            product("Alpine", "alpine/edge", "edge", "riscv64", "default"),
        ];
        images(
            format!(
                r#"{{"format": "products:1.0", "products": {{{}}}}}"#,
                products.join(",")
            )
            .as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn names_lead_to_images() {
        let all = list();
        let found = |name: &str| find(&all, name, "amd64", "http://h").map(|image| image.name.clone());
        for (name, image) in [
            ("debian/13", "debian/13"),
            ("debian/trixie", "debian/13"),
            ("Debian/Trixie/Default", "debian/13"),
            ("debian/trixie/cloud", "debian/13/cloud"),
            ("debian", "debian/13"),
            ("alpine", "alpine/3.20"),
        ] {
            assert_eq!(found(name).unwrap(), image, "{name}");
        }
        // The newest that has an archive.
        let trixie = find(&all, "debian/13", "amd64", "").unwrap();
        assert_eq!(trixie.version, "20240102_05:24");
        let archive = trixie.archive.clone().unwrap();
        assert_eq!(
            (archive.path.as_str(), archive.sum.to_string().as_str()),
            ("p/trixie/root.tar.xz", SUM)
        );
        assert_eq!(trixie.formats, ["squashfs.vcdiff"]);
        let unknown = found("debian/trxie").unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "catalogue 'http://h' has no image 'debian/trxie' for amd64"
        );
        assert!(
            unknown.hints()[0].starts_with("like it are debian/trixie"),
            "{:?}",
            unknown.hints()
        );
        let other = found("alpine/edge").unwrap_err().hints();
        assert!(
            other[0].contains("it is there for riscv64: `--arch riscv64`"),
            "{other:?}"
        );
        assert!(found("fedora/42").is_err());
        let matching = |pattern: &str| all.iter().filter(|image| image.matches(pattern)).count();
        let counts = ["debian", "debian/*", "*/cloud", "13", "DEBIAN/1?", "zz"].map(matching);
        assert_eq!(counts, [4, 4, 1, 2, 2, 0]);
    }

    #[test]
    fn what_is_no_catalogue_is_told() {
        for bad in [
            "",
            "<html>",
            "{}",
            "[]",
            r#"{"products": []}"#,
            r#"{"products": {"x": {"versions": 3}}}"#,
        ] {
            assert!(images(bad.as_bytes()).is_err(), "{bad}");
            assert!(lists(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(images(deep.as_bytes()).is_err());
        assert_eq!(images(br#"{"products": {"x": {}}}"#).unwrap(), []);
        let none = lists(br#"{"index": {"x": {"datatype": "content-download", "path": "x.json"}}}"#);
        assert_eq!(none.unwrap_err(), "its index has no images");
        let some = lists(br#"{"index": {"images": {"datatype": "image-downloads", "path": "streams/v1/images.json", "products": []}}}"#);
        assert_eq!(some.unwrap(), ["streams/v1/images.json"]);
        // Without a sum, or one that is none, nothing would vouch for it.
        for sum in ["", r#", "sha256": "x""#, r#", "sha256": null"#] {
            let item = format!(r#"{{"ftype": "root.tar.xz", "path": "p"{sum}}}"#);
            let list = format!(
                r#"{{"products": {{"x": {{"aliases": "a", "versions": {{"1": {{"items": {{"i": {item}}}}}}}}}}}}}"#
            );
            assert_eq!(images(list.as_bytes()).unwrap()[0].archive, None, "{item}");
        }
    }
}
