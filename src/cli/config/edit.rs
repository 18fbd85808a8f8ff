//! `machinist config edit`

use std::io::IsTerminal as _;
use std::path::Path;

use super::change::{self, How};
use super::check::diagnose;
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::nspawn::check::Severity;
use crate::ops::OpError;
use crate::ops::config::{Change, Draft, Wanted, draft, review};
use crate::output::{confirm, diagnostic};
use crate::sys::files::{read_regular, shown};
use crate::sys::process::{program_exists, run_on_terminal};

/// Edit the settings of a machine
///
/// Opens a copy in $SYSTEMD_EDITOR, $VISUAL or $EDITOR, and checks it when that ends: what systemd would not take does not
/// replace the file, and the editor is offered again. Neither is a file replaced that somebody changed meanwhile; the
/// copy is kept then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config edit web
  machinist config edit web --restart   And restart it, if it runs")]
pub(in crate::cli) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    #[command(flatten)]
    how: How,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    ctx.need_root("config edit")?;
    let name = args.name;
    super::find(ctx, &name).await?;
    let systemd = ctx.bus().await?.systemd_version().await?;
    let (places, subject) = (ctx.places.clone(), name.clone());
    // Ctrl-C belongs to the editor.
    let busy = ctx.hold();
    let edited = ctx
        .wait_for_user(move || {
            let draft = draft(&subject, &places)?;
            let directory =
                tempfile::tempdir().map_err(OpError::path("create a directory in", std::env::temp_dir()))?;
            let copy = directory.path().join(format!("{subject}.nspawn"));
            std::fs::write(&copy, &draft.text).map_err(OpError::path("write", &copy))?;
            let edited = edit(&draft, &copy, |wanted| {
                let change = Change {
                    name: subject.clone(),
                    wanted,
                    what: String::new(),
                    systemd,
                };
                review(&change, &places)
            });
            Ok((edited, draft, directory))
        })
        .await;
    drop(busy);
    let (edited, draft, directory) = edited?;
    let names = [name.to_string()];
    let result = match edited {
        Ok(Some(wanted)) => change::run(ctx, "config edit", &names, "edit".to_owned(), wanted, args.how).await,
        Ok(None) => {
            ctx.voice.status("nothing was changed");
            Ok(0)
        }
        Err(error) => Err(error),
    };
    let copy = directory.path().join(format!("{name}.nspawn"));
    let is_edited = std::fs::read(&copy).is_ok_and(|text| text != draft.text);
    if is_edited && !matches!(result, Ok(0)) {
        let _ = directory.keep();
        ctx.voice
            .warning(&format!("what you wrote is kept in '{}'", shown(&copy)));
    }
    result
}

/// Runs the editor until the text is fit to be written; `None` if nothing was changed.
fn edit(
    draft: &Draft,
    copy: &Path,
    review: impl Fn(Wanted) -> Vec<crate::nspawn::check::Finding>,
) -> Result<Option<Wanted>, CliError> {
    let editor = editor()?;
    loop {
        let words = editor[1..].iter().map(Path::new).chain([copy]);
        run_on_terminal(&editor[0], words).map_err(|error| {
            CliError::new(Kind::Failed, format!("{error}")).hint("nothing was changed; choose an editor by $EDITOR")
        })?;
        let text = read_regular(copy, crate::ops::config::files::MAX_BYTES).map_err(OpError::from)?;
        if text == draft.text {
            return Ok(None);
        }
        let wanted = Wanted::Text {
            read: draft.read.clone(),
            text: text.clone(),
        };
        let findings = review(wanted.clone());
        if findings.iter().all(|finding| finding.severity == Severity::Warning) {
            return Ok(Some(wanted));
        }
        let name = copy.to_string_lossy();
        let shown: Vec<_> = findings.iter().map(|finding| diagnose(&name, &text, finding)).collect();
        diagnostic::show(&shown)?;
        if !std::io::stdin().is_terminal() || !confirm("systemd would not take this. Edit it again?")? {
            return Err(CliError::new(
                Kind::Failed,
                "the settings are not changed: systemd would not take them",
            )
            .hint("see above for what is wrong with them"));
        }
    }
}

/// The editor and its arguments, as systemctl chooses it.
fn editor() -> Result<Vec<String>, CliError> {
    let wanted = ["SYSTEMD_EDITOR", "VISUAL", "EDITOR"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()));
    if let Some(wanted) = wanted {
        let words = shell_words::split(&wanted).unwrap_or_default();
        return if words.is_empty() {
            Err(CliError::new(Kind::Failed, format!("'{wanted}' is no command")).hint("choose an editor by $EDITOR"))
        } else {
            Ok(words)
        };
    }
    let usual = ["editor", "nano", "vim", "vi"]
        .into_iter()
        .find(|name| program_exists(name));
    usual.map(|name| vec![name.to_owned()]).ok_or_else(|| {
        CliError::new(Kind::Failed, "there is no editor").hint("choose one by $EDITOR, or use `machinist config set`")
    })
}
