//! `machinist import`

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use tokio::runtime::Handle;

use super::context::Ctx;
use super::create::check_name;
use super::error::{CliError, Kind};
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::ops::enable::is_enabled;
use crate::ops::import::{Request, Source, import, name_of, plan};
use crate::sys::journal::audit;

/// Make a machine of an archive, as it was exported
///
/// FILE is an archive that `export` wrote, `machinectl export-tar`, `incus export`, `incus image export`, or tar of a container of
/// lxc, with rootfs/ and config in it (`tar -C /var/lib/lxc/NAME --numeric-owner -caf FILE.tar.zst config rootfs`); which of them,
/// it says itself; or FILE.raw or oci:DIR[:TAG], images that `export` wrote. What `export` wrote is the same machine again: files,
/// settings, limits, order, labels and identity; all of it is compared with its sums before anything is seen of it. It does not
/// start at boot. What ran under another manager boots and stops as other machines do, and what its files set up for its first
/// link, as eth0, they do for host0, which is what systemd-nspawn calls it.
///
/// An archive may be a stranger's, and its machine gets no power over the host by it. Settings are written anew, without comments,
/// out of those that concern nothing but the machine. What reaches beyond it is shown as a diff and left out: mounts of the host's
/// files, devices, capabilities, the host's network, bridges, forwarded ports, users that are not private, commands that the host
/// runs. --trust-settings takes these, too: --dry-run shows them before. For a root filesystem in any other archive, and for any other image,
/// there is `create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist import web.tar.zst            Under the name that it had
  machinist import web.tar.zst web-2 --new-identity
  machinist import web.tar.zst --dry-run  See what would be done, and what it asks for
  machinist import --trust-settings web.tar.zst
  machinist import oci:layout:web web-2   An image that `export` wrote
  machinist import --trust-settings - web <web.tar.zst")]
pub(super) struct Args {
    /// The archive, compressed or not, FILE.raw, oci:DIR[:TAG], or - for standard input
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: OsString,
    /// What the machine is to be called [default: the name in the archive, or that of the file]
    name: Option<MachineName>,
    /// Take the settings, too, that reach beyond the machine
    #[arg(long)]
    trust_settings: bool,
    /// Give it a machine ID, keys and addresses of its own
    #[arg(long)]
    new_identity: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let source = source(&args)?;
    if !args.dry_run {
        ctx.need_root("import")?;
    }
    let name = match (args.name, &source) {
        (Some(name), _) => name,
        (None, Source::File(_) | Source::Layout(..)) => {
            // What can be read but once is not looked into first.
            if let Source::File(path) = &source
                && std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
            {
                return Err(unnamed("an archive from a pipe needs a name"));
            }
            let (source, cancel) = (source.clone(), ctx.cancel.clone());
            ctx.blocking(move || name_of(&source, &cancel)).await?
        }
        (None, Source::Stdin) => return Err(unnamed("an archive from standard input needs a name")),
    };
    name.check_new()?;
    let bus = ctx.bus().await?.clone();
    // A name that is taken is told before minutes of work, and asked again under the lock.
    check_name(&bus, &name).await?;
    if is_enabled(&bus.unit_file_state(&name.unit()).await?) {
        let message = format!("a machine named '{name}' is to start at boot, and this one would be it");
        let hint = format!("`systemctl disable {}`, or choose another name", name.unit());
        return Err(CliError::new(Kind::Failed, message).hint(hint));
    }
    let request = Request {
        source,
        name: name.clone(),
        trusts: args.trust_settings,
        new_identity: args.new_identity,
        systemd: bus.systemd_version().await?,
    };
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress(name.as_str()));
    if args.dry_run {
        let work = move || plan(&request, &places, &progress, &cancel);
        let (steps, warnings) = ctx.blocking(work).await?;
        for warning in warnings {
            ctx.voice.warning(&warning);
        }
        return ctx.show_plan(&steps).map(|()| 0);
    }
    sweep::run(ctx).await?;
    let systemd = ThroughSystemd {
        bus,
        handle: Handle::current(),
    };
    let trusts = request.trusts;
    let result = ctx
        .blocking(move || import(&request, &places, &systemd, &progress, &cancel))
        .await;
    let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message.as_str());
    audit(name.as_str(), "import", outcome);
    let imported = result?;
    ctx.voice.status(&format!("imported {name}"));
    ctx.voice.status(&format!("start it with `machinist start {name}`"));
    if ctx.voice.json {
        let row = serde_json::json!({
            "machine": name,
            "result": "imported",
            "path": imported.path,
            "kind": imported.kind.to_string(),
            "files": imported.files,
            "reaching": imported.reaching,
            "trusted": trusts,
        });
        ctx.voice.json(&[row])?;
    }
    Ok(0)
}

fn unnamed(message: &str) -> CliError {
    CliError::usage(message).hint("as in `machinist import - NAME`")
}

fn source(args: &Args) -> Result<Source, CliError> {
    if let Some(text) = args.file.to_str().and_then(|text| text.strip_prefix("oci:")) {
        return Ok(Source::layout(text));
    }
    if args.file != "-" {
        return Ok(Source::File(PathBuf::from(&args.file)));
    }
    if std::io::stdin().is_terminal() {
        return Err(CliError::usage("standard input is a terminal, and no archive")
            .hint("pipe one into it, as in `ssh HOST machinist export web - | machinist import - web`"));
    }
    Ok(Source::Stdin)
}
