//! What is run: a machine that there is, or something that a machine is made from; and what has to be so before that.

use std::path::Path;

use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::sources::{Source, SourceError};
use crate::sys::bus::{Bus, BusError};
use crate::sys::files::Root;
use crate::sys::processor::{PACKAGES, Program};

/// What is run.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The image of a machine.
    Machine(MachineName),
    /// A new image.
    Source(Source),
}

impl Target {
    pub(super) fn parse(text: &str) -> Result<Self, CliError> {
        match (text.parse::<Source>(), text.parse::<MachineName>()) {
            (Ok(Source::Stdin), _) => {
                let error =
                    CliError::usage("standard input is the command's: `run` reads no archive from it".to_owned());
                Err(error.hint("make a machine of it with `machinist create NAME -`".to_owned()))
            }
            (Ok(Source::Machine(name)), _) => {
                let error = CliError::usage(format!("a machine is run by its name: '{name}'"));
                Err(error.hint(format!("run a copy of it with `machinist run -x {name}`")))
            }
            (Ok(source), _) => Ok(Self::Source(source)),
            (Err(_), Ok(name)) => Ok(Self::Machine(name)),
            (Err(SourceError::NoSource { .. }), Err(error)) => Err(error.into()),
            (Err(error), Err(_)) => Err(CliError {
                kind: Kind::Usage,
                ..CliError::from(OpError::Source(error))
            }),
        }
    }

    /// What it is made from, if it is no machine.
    pub(super) fn source(&self) -> Option<&Source> {
        match self {
            Self::Source(source) => Some(source),
            Self::Machine(_) => None,
        }
    }

    /// A name for what is gone at the end.
    pub(super) fn new_name(&self) -> Result<MachineName, CliError> {
        match self {
            Self::Machine(name) => random_name(name.as_str()),
            Self::Source(source) => random_name(&stem(source)),
        }
    }
}

/// What a source is called, as far as a machine can be called so.
fn stem(source: &Source) -> String {
    let text = match source {
        Source::Bootstrap { suite, .. } => suite.clone(),
        Source::Catalogue(name) => name.as_str().split('/').next().unwrap_or_default().to_owned(),
        Source::Url(url) => url.file_name().split('.').next().unwrap_or_default().to_owned(),
        Source::Tarball(path) | Source::Disk(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.split('.').next().unwrap_or_default().to_owned()
        }
        Source::Directory(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Source::Image(image) => image.stem(),
        Source::Machine(name) => name.to_string(),
        Source::Stdin => "stdin".to_owned(),
        Source::Template(_) => "busybox".to_owned(),
    };
    let plain: String = text
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    match plain.trim_matches('-') {
        "" => "run".to_owned(),
        plain => plain.to_owned(),
    }
}

pub(super) fn no_directory(image: &Path) -> CliError {
    let message = format!(
        "'{}' is no directory, and cannot be copied for one run",
        image.display()
    );
    CliError::new(Kind::NotRun, message).hint("run it in place, without --ephemeral")
}

/// A name that nobody has given: what it is made from and five letters.
fn random_name(like: &str) -> Result<MachineName, CliError> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let stem: String = like.chars().take(58).collect();
    Ok(format!("{stem}-{}", id.get(..5).unwrap_or("00000"))
        .trim_end_matches('-')
        .parse()?)
}

/// A machine of that name must not run; nor may another than the one whose image it is have it.
pub(super) async fn is_free(bus: &Bus, name: &MachineName, like: &MachineName, boots: bool) -> Result<(), CliError> {
    match bus.registered(name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {
            let error = CliError::new(Kind::NotRun, format!("machine '{name}' is running"));
            let hint = if boots {
                format!("enter it with `machinist exec {name} -- sh`, or boot a copy with `run -x`")
            } else {
                format!("run the command in it with `machinist exec {name} -- …`, or in a copy with `run -x`")
            };
            return Err(error.hint(hint));
        }
    }
    if name != like && bus.find_image_path(name.as_str()).await?.is_some() {
        let error = CliError::new(
            Kind::NotRun,
            format!("there is an image '{name}', which is another machine"),
        );
        return Err(error.hint("choose another --name".to_owned()));
    }
    Ok(())
}

/// Whether there is what keeps a machine up that does not boot, and it runs here; `called` is what the user knows the tree by.
pub(super) fn has_shell(tree: &Path, called: &str) -> Result<(), CliError> {
    let root = Root::open(tree).map_err(OpError::from)?;
    if root.is_executable("bin/sh") != Some(true) {
        let error = CliError::new(Kind::NotRun, format!("there is no /bin/sh in '{called}'"));
        return Err(error.hint("boot it with `machinist run` without a command, and enter it with `machinist exec`"));
    }
    let shell = root.resolve("bin/sh").and_then(|shell| root.open_file(shell));
    match shell.ok().and_then(|shell| Program::of(shell).ok()) {
        Some(program @ Program::For(processor)) if !program.runs_in(&root) => {
            let error = CliError::new(Kind::NotRun, format!("/bin/sh in '{called}' is for {processor}"));
            Err(error.hint(format!("install an emulator: {PACKAGES}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_has_to_run_here() {
        let tree = tempfile::tempdir().unwrap();
        let shell = tree.path().join("bin/sh");
        std::fs::create_dir(tree.path().join("bin")).unwrap();
        let said = || has_shell(tree.path(), "it").err().map(|error| error.message);
        assert_eq!(said().unwrap(), "there is no /bin/sh in 'it'");
        std::fs::copy("/proc/self/exe", &shell).unwrap();
        assert_eq!(said(), None);
        // The AVR, for which there is no emulator.
        let mut program = vec![0_u8; 64];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        program[18] = 83;
        std::fs::write(&shell, program).unwrap();
        assert_eq!(said().unwrap(), "/bin/sh in 'it' is for processors of ELF's number 83");
    }

    #[test]
    fn a_source_is_told_from_a_name() {
        assert!(matches!(Target::parse("web").unwrap(), Target::Machine(name) if name.as_str() == "web"));
        for text in [
            "debian:trixie",
            "template:busybox",
            "rootfs.tar.zst",
            "/srv/My_tree.tar",
        ] {
            let target = Target::parse(text).unwrap();
            assert!(matches!(target, Target::Source(_)), "{text}");
            target.new_name().unwrap().check_new().unwrap();
        }
        for text in ["", "a b", "-", "machine:web", "debian:", "ssh:host"] {
            assert_eq!(Target::parse(text).unwrap_err().kind, Kind::Usage, "{text}");
        }
    }

    #[test]
    fn a_source_gives_its_name() {
        let name = |text: &str| Target::parse(text).unwrap().new_name().unwrap().to_string();
        assert!(name("debian:trixie").starts_with("trixie-"));
        assert!(name("template:busybox").starts_with("busybox-"));
        assert!(name("/srv/My_tree.tar.gz").starts_with("my-tree-"));
        assert!(name("/srv/..tar").starts_with("run-"));
        assert!(name("/srv/My.tree/").starts_with("my-tree-"));
    }
}
