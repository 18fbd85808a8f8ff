//! Whether a tree boots here at all: told before the first start fails.

use super::Init;
use crate::machine::OsRelease;
use crate::machine::text::printable;
use crate::sys::files::Root;
use crate::sys::guest::os_release;
use crate::sys::processor::Program;

/// What of a tree does not boot here, in the user's words.
pub(super) fn misfits(root: &Root, init: &Init) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(release) = os_release(root).filter(OsRelease::lacks_cgroup_v2) {
        notes.push(format!(
            "it does not boot here: the systemd of {} {} knows nothing of cgroup v2",
            printable(&release.id),
            printable(release.version().unwrap_or_default())
        ));
    }
    let programs: &[&str] = match init {
        Init::Systemd => &["usr/lib/systemd/systemd", "lib/systemd/systemd"],
        _ => &["sbin/init"],
    };
    let found = programs.iter().find_map(|program| root.resolve(program).ok());
    let program = found.and_then(|path| Program::of(root.open_file(path).ok()?).ok());
    if let Some(program @ Program::For(processor)) = program
        && !program.runs_in(root)
    {
        notes.push(processor.is_missing());
    }
    notes
}
