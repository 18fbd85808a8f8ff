//! What an image has to have so that a machine runs from it.

use std::fs;
use std::path::Path;

use super::settings::Checked;
use super::{Facts, error, note, warning};
use crate::machine::Cancel;
use crate::machine::text::bytes;
use crate::machine::trouble::Trouble;
use crate::ops::doctor::images::{filesystem, layers, too_old};
use crate::sys::files::{Kind, Root, shown};
use crate::sys::processor::{PACKAGES, Program};
use crate::sys::quota::quota_of;

/// Where systemd-nspawn looks for an init, see `--boot` in systemd-nspawn(1).
const INITS: [&str; 3] = ["usr/lib/systemd/systemd", "lib/systemd/systemd", "sbin/init"];
/// Whether a tree is an operating system's, see os-release(5).
const RELEASES: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];
/// What a machine is as good as out of, bytes.
const HARDLY_ANY: u64 = 1 << 20;

/// There is none, or its link leads nowhere. A unit of its own may run it from somewhere else.
pub(super) fn missing(facts: &Facts<'_>) -> Option<Trouble> {
    if facts.image.is_some() || !facts.drop_ins().is_empty() {
        return None;
    }
    let name = facts.name;
    let entry = facts.places.machines.join(name.as_str());
    let trouble = error("image-missing", format!("there is no image '{name}'"));
    Some(match fs::read_link(&entry) {
        Ok(target) => trouble
            .seen(format!(
                "'{}' leads to '{}', and nothing is there",
                shown(&entry),
                shown(&target)
            ))
            .hint(format!(
                "mount what '{}' is on, or `ln -sfn` the link to where the image is",
                shown(&target)
            )),
        Err(_) => trouble
            .seen(format!(
                "there is neither '{}' nor '{}.raw'",
                shown(&entry),
                shown(&entry)
            ))
            .hint(format!(
                "bring it back from a backup, or make it anew: `machinist create {name} debian:stable`"
            )),
    })
}

/// All that is wrong with it.
pub(super) async fn look(facts: &Facts<'_>, cancel: &Cancel) -> Vec<Trouble> {
    let mut found: Vec<Trouble> = missing(facts).into_iter().collect();
    if let Ok(Some(true)) = facts.bus.image_is_read_only(facts.name.as_str()).await {
        let trouble = note("image-read-only", "its image is read-only: it can change nothing in it");
        let hint = format!("`machinist read-only {} off`", facts.name);
        found.push(trouble.hint(hint));
    }
    let boots = Checked::of(facts)
        .await
        .is_none_or(|checked| checked.settings.value("Exec", "Boot") != Some("no"));
    let (name, places, image, cancel) = (
        facts.name.clone(),
        facts.places.clone(),
        facts.image.clone(),
        cancel.clone(),
    );
    let look = move || {
        let mut found = Vec::new();
        let Some(image) = image else { return found };
        if super::is_root() {
            found.extend(layers(std::slice::from_ref(&name), &places, &cancel));
            found.extend(tree(&image, boots));
            found.extend(too_old(&name, &places));
        }
        found.extend(filesystem(image.parent().unwrap_or(&places.machines)));
        found
    };
    found.extend(tokio::task::spawn_blocking(look).await.unwrap_or_default());
    found.extend(over_quota(facts).await);
    found
}

/// It can write nothing more, whether it runs or not.
pub(super) async fn over_quota(facts: &Facts<'_>) -> Option<Trouble> {
    let image = facts.bus.find_image_state(facts.name.as_str()).await.ok()??;
    let usage = quota_of(&image).await;
    let (used, limit) = (usage.current?, usage.limit?);
    (used.saturating_add(HARDLY_ANY) >= limit).then(|| {
        warning("quota-exceeded", "it takes all of the disk that it may")
            .seen(format!("{} of {} are used", bytes(used), bytes(limit)))
            .hint(format!(
                "`machinist quota {} {}`, or remove something in it",
                facts.name,
                larger(limit)
            ))
    })
}

/// Half as much again, in whole GiB.
fn larger(limit: u64) -> String {
    format!("{}G", (limit / 2 * 3).div_ceil(1 << 30).max(1))
}

/// A directory that systemd-nspawn does not boot.
fn tree(image: &Path, boots: bool) -> Option<Trouble> {
    if !boots || !image.is_dir() {
        return None;
    }
    let root = Root::open(image).ok()?;
    if RELEASES.iter().all(|path| root.resolve(path).is_err()) {
        let trouble = error("no-os-tree", "its image holds no operating system");
        return Some(
            trouble
                .seen(format!("there is no os-release file in '{}'", shown(image)))
                .hint(format!(
                    "look into '{}': an operating system must be there",
                    shown(image)
                )),
        );
    }
    let Some(init) = INITS.iter().find(|path| root.resolve(path).is_ok()) else {
        let seen = format!("'{}' has none of {}", shown(image), INITS.join(", "));
        return Some(
            error("no-init", "there is no init in its image")
                .seen(seen)
                .hint("install one into the image (package systemd-sysv)"),
        );
    };
    let path = shown(&image.join(init));
    if root.is_executable(init) == Some(false) {
        return Some(
            error("init-not-executable", "the init in its image is not executable")
                .seen(format!("'{path}' has no execute permission"))
                .hint(format!("`chmod +x '{path}'`")),
        );
    }
    let file = root.resolve(init).ok()?;
    if root.kind(&file).ok()? != Some(Kind::File) {
        return None;
    }
    let program = Program::of(root.open_file(&file).ok()?).ok()?;
    (!program.runs_in(&root)).then(|| {
        let trouble = error("init-wrong-format", "this processor does not run the init in its image");
        let trouble = match program {
            Program::For(processor) => trouble
                .seen(format!("'{path}' is for {processor}"))
                .hint(format!("install an emulator: {PACKAGES}")),
            _ => trouble.seen(format!("'{path}' is neither a program nor a script")),
        };
        trouble.hint("make the image anew for the architecture that `uname -m` says")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_half_as_much_again() {
        assert_eq!(
            [larger(100 << 20), larger(2 << 30), larger(10 << 30)],
            ["1G", "3G", "15G"]
        );
    }
}
