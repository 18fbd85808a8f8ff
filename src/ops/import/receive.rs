//! Reading an archive: its tree, and what it says of the machine, compared with its manifest.

use std::collections::BTreeMap;
use std::path::Path;

use super::foreign::{FIRST_LINK, Foreign};
use super::layout::{Archive, INCUS_INDEX, Kind};
use super::settings::Wishes;
use super::{Request, Source, image, incus, lxc};
use crate::machine::manifest::{ABOUT, About, MANIFEST, Manifest, ManifestError, Part, TREE};
use crate::machine::text::printable;
use crate::machine::{Cancel, Report};
use crate::ops::export::output::part_of;
use crate::ops::{OpError, Places};
use crate::sources::SourceError;
use crate::sources::tarball::bundle::{self, Bundle};
use crate::sys::files::{Root, shown};

/// What an archive has besides its tree.
pub(super) struct Found {
    pub(super) kind: Kind,
    /// What the machine was called, if it says so.
    pub(super) former: Option<String>,
    pub(super) wishes: Wishes,
    /// What its first link was called inside, where that was not systemd-nspawn's name.
    pub(super) link: Option<String>,
}

/// Reads the archive, and compares it with its manifest; the tree goes into `target`, or nowhere.
pub(super) fn receive(
    request: &Request,
    target: Option<&Path>,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Found, OpError> {
    let source = &request.source;
    let mut archive = Archive::new(false);
    let image = image::receive(source, target, &places.machines, &mut archive, report, cancel)?;
    let is_image = image.is_some();
    let bundle = match image {
        Some(bundle) => bundle,
        None => bundle::read(source.open()?, source.label(), target, &mut archive, report, cancel)
            .map_err(|error| SourceError::from(error).full_at(&places.machines))?,
    };
    // An image is nothing else: it has come so far only with what is said of it.
    let kind = archive.kind.filter(|_| !is_image);
    let kind = kind.unwrap_or(if is_image { Kind::Machinist } else { Kind::Tar });
    let mut found = match kind {
        Kind::Machinist => {
            let about = check_sums(&bundle).map_err(|error| unfit(source, &error))?;
            Found {
                kind,
                former: Some(about.name),
                wishes: Wishes::of_members(&bundle.members, request.systemd)?,
                link: None,
            }
        }
        _ => {
            let foreign = foreign(kind, &bundle).unwrap_or_default();
            if foreign.left().count() > 0 {
                report.warn(&format!("left out, as systemd has nothing like it: {}", foreign.left()));
            }
            if foreign.starts_at_boot {
                report.warn(&format!(
                    "it started with its host there, and does not here: `machinist enable {}` has it do so",
                    request.name
                ));
            }
            Found {
                kind,
                former: foreign.machine_name().map(|name| name.to_string()),
                wishes: foreign.wishes(request.systemd),
                link: foreign.link,
            }
        }
    };
    check_tree(source, kind, &bundle, target)?;
    if bundle.extracted.skipped_devices > 0 {
        let count = bundle.extracted.skipped_devices;
        report.warn(&format!(
            "{count} device nodes were left out: systemd-nspawn makes those that a machine may have"
        ));
    }
    if request.new_identity {
        found.wishes.forget_identity();
    }
    if let Some(former) = &found.former {
        found.wishes.rename(former, &request.name);
    }
    Ok(found)
}

/// Refuses what is no root filesystem.
fn check_tree(source: &Source, kind: Kind, bundle: &Bundle, target: Option<&Path>) -> Result<(), OpError> {
    let has_usr = match target {
        Some(target) => Root::open(target)?.resolve("usr").is_ok(),
        None => bundle.extracted.entries > 0,
    };
    if has_usr {
        return Ok(());
    }
    let elsewhere = || foreign(kind, bundle)?.elsewhere;
    let hint = match (kind, elsewhere()) {
        (_, Some(place)) => format!(
            "it lies elsewhere, in '{}': while it runs, `tar -C /proc/$(lxc-info -pHn NAME)/root --one-file-system -cf FILE .` \
             has all of it",
            printable(&place)
        ),
        (Kind::Incus, None) => {
            "of a container, made without --optimized-storage, `incus export` has one; a virtual machine has none".to_owned()
        }
        (Kind::Image, None) => "of a split image of incus the root filesystem is the other file".to_owned(),
        (_, None) => {
            "see what it has with `tar -tvf FILE | less`; of another archive a part is taken by `machinist create --subtree`"
                .to_owned()
        }
    };
    Err(OpError::Option {
        message: format!(
            "archive '{}' has no root filesystem: there is no /usr in it",
            shown(source.label())
        ),
        hint,
    })
}

pub(super) fn unfit(source: &Source, error: &ManifestError) -> OpError {
    let hint = match error {
        ManifestError::TooNew { .. } => "import it with that version",
        _ => "it is cut off, damaged or was changed: fetch it again, or export the machine anew",
    };
    OpError::Option {
        message: format!("archive '{}' cannot be taken: {error}", shown(source.label())),
        hint: hint.to_owned(),
    }
}

fn member<'a>(bundle: &'a Bundle, path: &str) -> Option<&'a [u8]> {
    let found = bundle.members.iter().find(|member| member.path == path);
    found.map(|member| member.bytes.as_slice())
}

pub(super) fn about(bundle: &Bundle) -> Result<About, ManifestError> {
    About::parse(member(bundle, ABOUT).ok_or(ManifestError::Missing(ABOUT))?)
}

/// Compares all parts with the manifest.
pub(super) fn check_sums(bundle: &Bundle) -> Result<About, ManifestError> {
    let about = about(bundle)?;
    let manifest = Manifest::parse(member(bundle, MANIFEST).ok_or(ManifestError::Missing(MANIFEST))?)?;
    let others = bundle.members.iter().filter(|member| member.path != MANIFEST);
    let mut found: BTreeMap<String, Part> = others
        .map(|member| (member.path.clone(), part_of(&member.bytes)))
        .collect();
    if let Some((sum, size)) = bundle.tree {
        let sha256 = sum.to_string();
        found.insert(TREE.to_owned(), Part { sha256, size });
    }
    manifest.check(&about, &found)?;
    Ok(about)
}

/// What another tool says of its container.
pub(super) fn foreign(kind: Kind, bundle: &Bundle) -> Option<Foreign> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match kind {
        Kind::Incus => Some(incus::read(&text(member(bundle, INCUS_INDEX)?))),
        Kind::Lxc => Some(lxc::read(&text(&bundle.members.first()?.bytes))),
        Kind::Image => {
            let mut found = Foreign::default();
            found.first_link(FIRST_LINK);
            Some(found)
        }
        Kind::Machinist | Kind::Tar => None,
    }
}
