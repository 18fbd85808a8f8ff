//! `--allow` of `config set` and `config unset`: bundles of settings.

use clap::builder::PossibleValue;

use super::setting::Edits;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::ops::device::Node;
use crate::unit::allow::{Allow, all};

/// The bundles that there are, for clap.
pub(super) fn names() -> clap::builder::PossibleValuesParser {
    let values = all()
        .into_iter()
        .map(|bundle| PossibleValue::new(bundle.name).help(bundle.about));
    values.collect::<Vec<_>>().into()
}

/// Adds the edits that allow these, and says what that means.
pub(super) fn allow(ctx: &Ctx, names: &[String], edits: &mut Edits) -> Result<(), CliError> {
    for bundle in names.iter().filter_map(|name| Allow::find(name)) {
        for device in bundle.devices() {
            Node::of(&device)?;
        }
        let lines: Vec<String> = bundle.lines().collect();
        ctx.voice.status(&format!("{} is {}", bundle.name, lines.join(", ")));
        ctx.voice.status(&format!("{} exposes {}", bundle.name, bundle.exposes));
        add(&bundle, true, edits);
    }
    Ok(())
}

/// Adds the edits that take these back.
pub(super) fn forbid(names: &[String], edits: &mut Edits) {
    for bundle in names.iter().filter_map(|name| Allow::find(name)) {
        add(&bundle, false, edits);
    }
}

fn add(bundle: &Allow, allow: bool, edits: &mut Edits) {
    let (settings, drop_ins) = bundle.edits(allow);
    edits.settings.extend(settings);
    edits.drop_ins.extend(drop_ins);
}

/// Settings and bundles as they were typed, for the list of changes.
pub(super) fn typed(verb: &str, settings: &str, names: &[String]) -> String {
    let mut words = vec![verb.to_owned()];
    words.extend((!settings.is_empty()).then(|| settings.to_owned()));
    words.extend(names.iter().map(|name| format!("--allow {name}")));
    words.join(" ")
}
