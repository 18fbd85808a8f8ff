//! Runs the bootstrapper: its command, its progress, and what its output says about a failure.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::host::arch;
use super::{Recipe, Tool, clean};
use crate::machine::{Cancel, Report};
use crate::sources::error::is_full;
use crate::sources::mirror::{Release, local_path, without_password};
use crate::sources::{Distro, Places, SourceError, apt};
use crate::sys::files::Root;
use crate::sys::process::{ProcessError, Program, Tail, printable};

/// How many logs of bootstraps are kept.
const LOGS_KEPT: usize = 20;
/// Where debootstrap has what it knows about suites.
const SCRIPTS: &str = "/usr/share/debootstrap/scripts";

/// Bootstraps into `target`, an empty directory, and leaves a tree without any identity. `scratch` is an existing directory
/// for temporary files, which the caller removes.
pub(crate) fn build(
    recipe: &Recipe,
    release: &Release,
    places: &Places,
    target: &Path,
    scratch: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let log = new_log(recipe, places)?;
    let keyring = copy_keyring(recipe, scratch)?;
    // Both make their temporary files there; a kill -9 must not leave them in /tmp.
    let mut program = command(recipe, &recipe.packages(release), target, &keyring)
        .env("TMPDIR", scratch)
        .log_to(&log)
        .contained();
    program = match &recipe.proxy {
        Some(proxy) => program.env("http_proxy", proxy).env("https_proxy", proxy),
        None => ["http_proxy", "https_proxy", "no_proxy"]
            .into_iter()
            .fold(program, Program::inherit_env),
    };
    let mut phases = Phases::new(recipe, report);
    let mut clues = Clues::default();
    let result = program.run_watched(cancel, &mut |line| {
        phases.see(line);
        clues.see(line);
    });
    if let Err(error) = result {
        return Err(diagnose(recipe, target, log, &mut clues, error));
    }
    report.phase("cleaning the tree");
    let root = Root::open(target)?;
    clean::clean(&root)?;
    apt::write(&root, &recipe.apt_sources(release))?;
    Ok(())
}

/// The bootstrapper's command line.
pub(super) fn command(recipe: &Recipe, packages: &[String], target: &Path, keyring: &Path) -> Program {
    let components = recipe.components.join(",");
    let packages = packages.join(",");
    let program = Program::new(recipe.tool.name()).env("DEBIAN_FRONTEND", "noninteractive");
    let program = match recipe.tool {
        Tool::Mmdebstrap => program
            .args(["--mode=root", "--format=directory", "--verbose"])
            // The cache, the keyring's copy and the machines are closed to apt's own user. The guest's copy of this option
            // is removed with the rest of what belongs to the build.
            .arg("--aptopt=APT::Sandbox::User \"root\"")
            .arg(format!("--variant={}", recipe.variant))
            .arg(format!("--components={components}"))
            .arg(format!("--architectures={}", recipe.arch))
            // For another one it wants a program of its own (arch-test) to find out what is known by now.
            .args((recipe.arch != arch()).then_some("--skip=check/qemu"))
            .arg(format!("--include={packages}")),
        Tool::Debootstrap => {
            let program = match recipe.variant.as_str() {
                // debootstrap has no name for what it does without the option.
                "-" | "important" | "standard" => program,
                "minbase" | "required" | "essential" | "apt" => program.arg("--variant=minbase"),
                variant => program.arg(format!("--variant={variant}")),
            };
            program
                // Without it a missing keyring means no check at all.
                .arg("--force-check-gpg")
                .arg(format!("--components={components}"))
                .arg(format!("--arch={}", recipe.arch))
                .arg(format!("--include={packages}"))
        }
    };
    let program = program
        .args(trust(recipe, keyring))
        .arg(&recipe.suite)
        .arg(target.as_os_str())
        .arg(mirror_argument(recipe, keyring));
    match recipe.tool {
        Tool::Debootstrap if !Path::new(SCRIPTS).join(&recipe.suite).exists() => {
            // A suite newer than the host's debootstrap: all recent suites share one script per distribution.
            let script = match recipe.distro {
                Distro::Debian => "sid",
                Distro::Ubuntu => "gutsy",
            };
            program.arg(Path::new(SCRIPTS).join(script))
        }
        _ => program,
    }
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut word = OsString::from(option);
    word.push(path);
    word
}

/// mmdebstrap's `--keyring` only adds to what the host trusts already, so there the source line says it.
fn trust(recipe: &Recipe, keyring: &Path) -> Option<OsString> {
    (recipe.tool == Tool::Debootstrap).then(|| joined("--keyring=", keyring))
}

/// The mirror as the program takes it: debootstrap a URL, mmdebstrap a line of `sources.list`, in which `signed-by` excludes
/// every other key. mmdebstrap needs `copy:` for local mirrors; debootstrap only knows `file:`.
fn mirror_argument(recipe: &Recipe, keyring: &Path) -> OsString {
    let local = local_path(&recipe.mirror);
    if recipe.tool == Tool::Debootstrap {
        return local.map_or_else(|| recipe.mirror.clone().into(), |path| joined("file://", &path));
    }
    let mut line = joined("deb [signed-by=", keyring);
    line.push("] ");
    line.push(local.map_or_else(|| recipe.mirror.clone().into(), |path| joined("copy://", &path)));
    line.push(format!(" {} {}", recipe.suite, recipe.components.join(" ")));
    line
}

/// The keyring under a name of ours: apt's sources have no way to quote the name that a user chose.
fn copy_keyring(recipe: &Recipe, scratch: &Path) -> Result<PathBuf, SourceError> {
    let keys = std::fs::read(&recipe.keyring).map_err(|error| SourceError::io("read", &recipe.keyring, error))?;
    let copy = scratch.join(if keys.starts_with(b"-----BEGIN") {
        "keyring.asc"
    } else {
        "keyring.gpg"
    });
    std::fs::write(&copy, keys).map_err(|error| SourceError::io("write", &copy, error))?;
    Ok(copy)
}

/// A new, empty log; old ones beyond [`LOGS_KEPT`] go.
fn new_log(recipe: &Recipe, places: &Places) -> Result<PathBuf, SourceError> {
    let dir = &places.logs;
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .map_err(|error| SourceError::io("create", dir, error))?;
    let mut old: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(|error| SourceError::io("list", dir, error))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("bootstrap-") && name.ends_with(".log")
        })
        .collect();
    // Their names begin with the time.
    old.sort();
    for path in old.iter().take(old.len().saturating_sub(LOGS_KEPT - 1)) {
        // Somebody else may have removed it, and a log too many harms nobody.
        let _ = std::fs::remove_file(path);
    }
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let pid = std::process::id();
    Ok(dir.join(format!("bootstrap-{time}-{}-{}-{pid}.log", recipe.distro, recipe.suite)))
}

/// Tells the report which phase the bootstrapper is in. Phases only go forward, though both programs unpack and
/// configure in turns.
struct Phases<'a> {
    report: &'a dyn Report,
    what: String,
    now: usize,
}

const PHASES: [&str; 4] = ["starting", "downloading", "unpacking", "configuring"];

impl<'a> Phases<'a> {
    fn new(recipe: &Recipe, report: &'a dyn Report) -> Self {
        Self {
            report,
            what: format!("{} {}", recipe.distro, recipe.suite),
            now: 0,
        }
    }

    fn see(&mut self, line: &str) {
        let phase = phase_of(line).unwrap_or(0);
        if phase > self.now {
            self.now = phase;
            self.report.phase(&format!("{} {}", PHASES[phase], self.what));
        }
    }
}

/// The index in [`PHASES`] that a line of either program tells.
fn phase_of(line: &str) -> Option<usize> {
    const SIGNS: &[(&str, usize)] = &[
        ("I: Retrieving ", 1),
        ("I: running apt-get update", 1),
        ("I: downloading packages", 1),
        ("I: Extracting ", 2),
        ("I: extracting archives", 2),
        ("I: Configuring ", 3),
        ("Setting up ", 3),
    ];
    SIGNS
        .iter()
        .find(|(sign, _)| line.starts_with(sign))
        .map(|(_, phase)| *phase)
}

/// What the output said on the way that explains a failure better than its last lines.
#[derive(Default)]
struct Clues {
    disk_full: bool,
    signature: bool,
    expired: bool,
    no_package: Option<String>,
}

impl Clues {
    fn see(&mut self, line: &str) {
        let has = |text: &str| line.contains(text);
        self.disk_full |= has("No space left on device") || has("You don't have enough free space") || has("ENOSPC");
        self.signature |= has("NO_PUBKEY")
            || has("Release signed by unknown key")
            || has("Invalid Release signature")
            || has("Release file is not signed")
            || has("The following signatures were invalid")
            || has("is not signed.")
            || has("Missing key ")
            || has("no keyring available")
            || has("Cannot check Release signature");
        self.expired |= has("Release file for") && has("is expired") || has("is not valid anymore");
        if let Some(package) = missing_package(line) {
            self.no_package.get_or_insert(package);
        }
    }
}

/// `E: Unable to locate package X` (apt), `E: Couldn't find these debs: X Y` (debootstrap).
fn missing_package(line: &str) -> Option<String> {
    let signs = [
        "Unable to locate package ",
        "Couldn't find these debs: ",
        "Package '",
        "E: Couldn't find any package by regex '",
    ];
    let rest = match signs
        .iter()
        .enumerate()
        .find_map(|(index, sign)| Some((index, line.split_once(sign)?.1)))?
    {
        (2, rest) => rest.split_once("' has no installation candidate")?.0,
        (_, rest) => rest,
    };
    let name = rest.split([' ', '\'']).next().unwrap_or_default();
    (!name.is_empty()).then(|| printable(name))
}

/// Turns a failed run into the error that tells what to do.
fn diagnose(recipe: &Recipe, target: &Path, log: PathBuf, clues: &mut Clues, error: ProcessError) -> SourceError {
    let (program, status, tail) = match error {
        ProcessError::Failed {
            program, status, tail, ..
        } => (program, status, tail),
        ProcessError::Start { source, .. } if is_full(&source) => return SourceError::DiskFull { path: log },
        other => return other.into(),
    };
    let inner = keep_inner_log(target, &log, clues);
    let tail = inner.or(tail);
    let mirror = without_password(&recipe.mirror);
    let suite = recipe.suite.clone();
    if clues.disk_full {
        return SourceError::DiskFull {
            path: target.parent().unwrap_or(target).to_owned(),
        };
    }
    if clues.signature {
        let keyring = recipe.keyring.clone();
        return SourceError::BadSignature {
            mirror,
            keyring,
            tail,
            log,
        };
    }
    if clues.expired {
        return SourceError::Expired { suite, mirror, tail };
    }
    if let Some(package) = clues.no_package.take() {
        return SourceError::NoPackage { package, suite, log };
    }
    let log = Some(log);
    SourceError::Bootstrap {
        suite,
        source: ProcessError::Failed {
            program,
            status,
            tail,
            log,
        },
    }
}

/// debootstrap tells what dpkg said only in a file inside the target, which is about to be removed: appends it to our log,
/// and returns its end.
fn keep_inner_log(target: &Path, log: &Path, clues: &mut Clues) -> Option<Tail> {
    let bytes = Root::open(target)
        .ok()?
        .read("debootstrap/debootstrap.log", 16 << 20)
        .ok()?;
    // The error is about the bootstrap; a log that cannot be appended to must not hide it.
    let _ = File::options()
        .append(true)
        .open(log)
        .and_then(|mut file| file.write_all(&bytes));
    let text = String::from_utf8_lossy(&bytes);
    text.lines().for_each(|line| clues.see(line));
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let first = lines.len().saturating_sub(12);
    let tail: Vec<String> = lines[first..].iter().map(|line| printable(line)).collect();
    (!tail.is_empty()).then_some(Tail(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clues_are_found_in_what_the_programs_print() {
        let see = |line: &str| {
            let mut clues = Clues::default();
            clues.see(line);
            clues
        };
        assert!(see("cp: error writing 'x': No space left on device").disk_full);
        assert!(see("E: Release signed by unknown key (key id 6ED0E7B82643E131)").signature);
        assert!(see("W: GPG error: http://m trixie InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 0E98404D386FA1D9").signature);
        assert!(see("E: Release file for http://m/dists/forky/InRelease is expired (invalid since 5d 4h).").expired);
        assert_eq!(
            see("E: Unable to locate package no-such").no_package.as_deref(),
            Some("no-such")
        );
        assert_eq!(
            see("E: Couldn't find these debs: foo bar").no_package.as_deref(),
            Some("foo")
        );
        assert_eq!(
            see("E: Package 'foo' has no installation candidate")
                .no_package
                .as_deref(),
            Some("foo")
        );
        assert!(see("Package 'foo' is installed").no_package.is_none());
    }

    #[test]
    fn phases_go_forward_only() {
        use std::sync::Mutex;
        struct Seen(Mutex<Vec<String>>);
        impl Report for Seen {
            fn phase(&self, what: &str) {
                self.0.lock().unwrap().push(what.to_owned());
            }
            fn progress(&self, _: u64, _: Option<u64>) {}
            fn warn(&self, _: &str) {}
        }
        let seen = Seen(Mutex::default());
        let mut phases = Phases {
            report: &seen,
            what: "debian sid".to_owned(),
            now: 0,
        };
        for line in [
            "I: Retrieving x",
            "I: Extracting x",
            "I: Configuring x",
            "I: Extracting y",
            "I: Retrieving z",
        ] {
            phases.see(line);
        }
        assert_eq!(
            *seen.0.lock().unwrap(),
            [
                "downloading debian sid",
                "unpacking debian sid",
                "configuring debian sid"
            ]
        );
    }
}
