//! `machinist config check`

use std::io::Read as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::find;
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::cli::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::nspawn::check::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::schema::{NEWEST_SYSTEMD, OLDEST_SYSTEMD};
use crate::ops::Places;
use crate::ops::config::drop_ins::with_topic;
use crate::ops::config::files::{self, MAX_BYTES, SettingsFile};
use crate::ops::config::findings::{Viewpoint, findings};
use crate::ops::config::users::HostUsers;
use crate::ops::secret;
use crate::output::diagnostic::{self, Diagnostic, Spot};
use crate::sys::files::shown;
use crate::unit::topic::Topic;

/// Check .nspawn files as systemd reads them
///
/// Errors are lines that systemd ignores, files that it refuses, and settings with which the machine does not start;
/// warnings are settings that hardly do what they were written for, or need what this host does not have now. Without
/// arguments all files of all machines are checked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config check web                            The settings of one machine
  machinist config check ./web.nspawn --strict          A file, and warnings count, too
  machinist config check - --systemd-version 252 <FILE  A file for another host
  machinist config check --json                         All of them, for scripts

Exit status: 0 clean or warnings only, 1 errors; with --strict 1 for warnings, too.")]
pub(in crate::cli) struct Args {
    /// Machines, patterns of image names, or files: a path with '/', or NAME.nspawn; '-' is standard input
    #[arg(value_name = "NAME|FILE", add = complete::images())]
    what: Vec<String>,
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
    /// Check for this version of systemd, on another host: what only this one can tell is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(OLDEST_SYSTEMD)..1000))]
    systemd_version: Option<u32>,
}

/// What is to be checked.
enum Subject {
    Stdin,
    File(PathBuf),
    Machine(MachineName),
}

/// A file that was checked.
struct Report {
    name: String,
    bytes: Vec<u8>,
    findings: Vec<Finding>,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let subjects = subjects(ctx, &args.what).await?;
    let (systemd, this_host) = match args.systemd_version {
        Some(version) => (version, None),
        None => match ctx.bus().await {
            Ok(bus) => (bus.systemd_version().await?, Some(HostUsers::default())),
            // Where there is no systemd, as in a build, no machine is going to run.
            Err(_) => {
                ctx.voice
                    .status(&format!("no systemd runs here: checking for version {NEWEST_SYSTEMD}"));
                (NEWEST_SYSTEMD, None)
            }
        },
    };
    let places = ctx.places.clone();
    let reports = ctx
        .wait_for_user(move || {
            let checker = Checker {
                places,
                systemd,
                this_host,
            };
            Ok(subjects
                .iter()
                .flat_map(|subject| checker.subject(subject))
                .collect::<Vec<_>>())
        })
        .await?;
    show(ctx, &reports)?;
    let worst = reports
        .iter()
        .flat_map(|report| &report.findings)
        .map(|f| f.severity)
        .min();
    Ok(match worst {
        Some(Severity::Error) => 1,
        Some(Severity::Warning) => u8::from(args.strict),
        None => 0,
    })
}

async fn subjects(ctx: &Ctx, what: &[String]) -> Result<Vec<Subject>, CliError> {
    if what.is_empty() {
        let mut names = files::all_names(&ctx.places);
        names.extend(with_topic(Topic::Secret, &ctx.places));
        return Ok(names.into_iter().map(Subject::Machine).collect());
    }
    let mut subjects = Vec::new();
    for word in what {
        if word == "-" {
            subjects.push(Subject::Stdin);
        } else if word.contains('/') || word.ends_with(".nspawn") {
            subjects.push(Subject::File(word.into()));
        } else {
            for name in resolve(ctx, std::slice::from_ref(word), Pool::Images).await? {
                find(ctx, &name).await?;
                subjects.push(Subject::Machine(name));
            }
        }
    }
    Ok(subjects)
}

struct Checker {
    places: Places,
    systemd: u32,
    this_host: Option<HostUsers>,
}

impl Checker {
    fn subject(&self, subject: &Subject) -> Vec<Report> {
        match subject {
            Subject::Stdin => {
                let mut bytes = Vec::new();
                let read = std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes);
                let bytes = match read {
                    Ok(_) if bytes.len() as u64 > MAX_BYTES => {
                        Err(format!("standard input is larger than {MAX_BYTES} bytes"))
                    }
                    Ok(_) => Ok(bytes),
                    Err(error) => Err(format!("cannot read standard input: {error}")),
                };
                vec![self.report("<stdin>".to_owned(), bytes, true, None)]
            }
            Subject::File(path) => vec![self.file(&files::by_path(path, &self.places))],
            Subject::Machine(name) => {
                let files = files::of_machine(name, &self.places);
                let secrets = self.secrets(name);
                let Some((first, others)) = files.split_first() else {
                    return secrets.into_iter().collect();
                };
                let hidden = others.iter().map(|file| {
                    let message = format!("the file is not read: systemd finds '{}' first", shown(&first.path));
                    let finding = Finding::of_file(Severity::Warning, "hidden-file", message);
                    Report {
                        name: file.path.to_string_lossy().into_owned(),
                        bytes: Vec::new(),
                        findings: vec![finding.hint("remove one of the two files")],
                    }
                });
                std::iter::once(self.file(first)).chain(hidden).chain(secrets).collect()
            }
        }
    }

    /// The drop-in that hands a machine its secrets, which are of this host.
    fn secrets(&self, name: &MachineName) -> Option<Report> {
        self.this_host.as_ref()?;
        match secret::check(name, &self.places) {
            Ok(checked) => checked.map(|checked| Report {
                name: checked.path.to_string_lossy().into_owned(),
                bytes: checked.bytes,
                findings: checked.findings,
            }),
            Err(error) => Some(Report {
                name: format!("secrets of {name}"),
                bytes: Vec::new(),
                findings: vec![Finding::of_file(Severity::Error, "unreadable", error.to_string())],
            }),
        }
    }

    fn file(&self, file: &SettingsFile) -> Report {
        let bytes = file.read().map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        });
        let machine = file.path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        let name = file.path.to_string_lossy().into_owned();
        self.report(name, bytes, file.trusted, machine.as_ref())
    }

    fn report(
        &self,
        name: String,
        bytes: Result<Vec<u8>, String>,
        trusted: bool,
        machine: Option<&MachineName>,
    ) -> Report {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(message) => {
                return Report {
                    name,
                    bytes: Vec::new(),
                    findings: vec![Finding::of_file(Severity::Error, "unreadable", message)],
                };
            }
        };
        let document = Document::from_bytes(bytes);
        let view = Viewpoint {
            systemd: self.systemd,
            trusted,
            machine,
            on_this_host: self.this_host.as_ref(),
        };
        let findings = findings(&document, view, &self.places);
        Report {
            name,
            bytes: document.as_bytes().to_vec(),
            findings,
        }
    }
}

fn show(ctx: &Ctx, reports: &[Report]) -> Result<(), CliError> {
    if ctx.voice.json {
        let all: Vec<Value> = reports
            .iter()
            .flat_map(|report| report.findings.iter().map(|finding| to_json(&report.name, finding)))
            .collect();
        return Ok(ctx.voice.json(&all)?);
    }
    let diagnostics: Vec<Diagnostic<'_>> = reports
        .iter()
        .flat_map(|report| {
            let diagnose = |finding| diagnose(&report.name, &report.bytes, finding);
            report.findings.iter().map(diagnose)
        })
        .collect();
    diagnostic::show(&diagnostics)?;
    let count = |severity| {
        let all = reports.iter().flat_map(|report| &report.findings);
        all.filter(|finding| finding.severity == severity).count()
    };
    let plural = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    ctx.voice.status(&format!(
        "{} checked: {}, {}",
        plural(reports.len(), "file"),
        plural(count(Severity::Error), "error"),
        plural(count(Severity::Warning), "warning")
    ));
    Ok(())
}

/// A finding in the form in which it is shown; `text` is the whole file.
pub(super) fn diagnose<'a>(file: &'a str, text: &'a [u8], finding: &'a Finding) -> Diagnostic<'a> {
    Diagnostic {
        file,
        is_error: finding.severity == Severity::Error,
        code: finding.code,
        message: &finding.message,
        hint: finding.hint.as_deref(),
        spot: finding.place.as_ref().map(|place| Spot {
            text,
            bytes: place.bytes.clone(),
            line: place.line,
        }),
    }
}

/// `systemd_line` is the one that systemd names: of a continued assignment the last.
fn to_json(file: &str, finding: &Finding) -> Value {
    let place = finding.place.as_ref();
    json!({
        "file": file,
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "systemd_line": place.map(|place| place.systemd_line),
        "severity": finding.severity.as_str(),
        "code": finding.code,
        "message": finding.message,
        "hint": finding.hint,
    })
}
