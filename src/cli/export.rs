//! `machinist export`

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use tokio::runtime::Handle;

use super::clone::is_running;
use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::machine::text::bytes;
use crate::ops::OpError;
use crate::ops::export::layout::Layout;
use crate::ops::export::output::{Format, Target};
use crate::ops::export::{Exported, Request, export, plan};
use crate::sys::files::shown;
use crate::sys::journal::audit;

/// Write a machine into an archive
///
/// The archive has the machine's files, its .nspawn file, drop-ins, limits, order and labels, and a manifest with the SHA-256 sum of
/// each part. `import` makes the same machine of it, on this host or another; `tar` lists and unpacks it. The files belong to the
/// users that the machine sees. Of the same machine it has the same bytes. Secrets, device nodes and sockets are left out, and what
/// is the host's to say: its quota, and whether it starts at boot.
///
/// FILE.raw is a disk image, as systemd-nspawn, `machinectl import-raw` and `create` take it: an ext4 filesystem, made by mke2fs, in a
/// partition of this processor's type, and a small one for all else. While it is made, the files are there twice more: beside FILE,
/// and in /var/lib/machines. Fractions of seconds of times are lost.
///
/// oci:DIR[:TAG] is an image in an OCI layout, made or added to, as skopeo, umoci and `create` read it: one layer, and what the
/// machine starts. What else is said of the machine refers to that image, and `import` makes the same machine of it. The parts of an
/// image that gave way to another stay in DIR until `umoci gc --layout DIR`.
///
/// Of a machine whose image is a disk, NAME.raw, an archive, oci:DIR or FILE.raw gets the files of its root filesystem, and `import`
/// makes a directory of them. With --no-settings FILE.raw is the disk as it is: `create` makes the same of it. The machine does not run
/// meanwhile: what is below a mounted filesystem is torn. A disk with /usr, /home, /srv or /var in partitions of their own, with
/// dm-verity, or an encrypted one is copied as it is only; what boot loaders have in partitions of theirs is left out.
///
/// Any other running machine stands still meanwhile, and goes on also if machinist is killed; down a pipe for as long as the reader takes. On
/// btrfs, and where else copies share their contents, only for the moment that a copy takes. FILE is there when it is whole, and
/// readable by root only.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist export web web.tar.zst             With all its settings
  machinist export db db.tar.xz --no-settings  Its files only
  machinist export --force web web.tar.zst     In place of an older archive
  machinist export web oci:layout:web          An image of a container, in a directory
  machinist export web web.raw                 A disk image
  machinist export web - | machinist import - web-2   Down a pipe, as of ssh
  machinist export web web.tar --dry-run       See what would be done")]
pub(super) struct Args {
    /// The machine, running or not
    #[arg(add = complete::images())]
    name: MachineName,
    /// The archive: FILE.tar.zst, .tar.xz, .tar.gz or .tar, FILE.raw, oci:DIR[:TAG], or - for standard output
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: OsString,
    /// How it is compressed [default: what the name of FILE says; tar for -, tar.gz for oci:]
    #[arg(long, value_name = "tar|tar.gz|tar.xz|tar.zst")]
    format: Option<Format>,
    /// The files only
    #[arg(long)]
    no_settings: bool,
    /// Replace FILE, or the image of that TAG, if it is there
    #[arg(long)]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (target, format) = target(ctx, &args)?;
    let bus = ctx.bus().await?.clone();
    let image = bus.find_image_state(args.name.as_str()).await?;
    let image = image.ok_or_else(|| OpError::NoImage {
        name: args.name.to_string(),
    })?;
    let request = Request {
        name: args.name,
        image: PathBuf::from(image.path),
        target,
        format,
        settings: !args.no_settings,
    };
    if args.dry_run {
        let running = is_running(&bus, &request.name).await?;
        return ctx.show_plan(&plan(&request, running, &ctx.places)?).map(|()| 0);
    }
    ctx.need_root("export")?;
    if request.target == Target::Stdout && std::io::stdout().is_terminal() {
        return Err(
            CliError::usage("standard output is a terminal, and no place for an archive").hint(format!(
                "name a file, as in `machinist export {0} {0}.tar.zst`",
                request.name
            )),
        );
    }
    sweep::run(ctx).await?;
    let (places, cancel, progress) = (
        ctx.places.clone(),
        ctx.cancel.clone(),
        ctx.progress(request.name.as_str()),
    );
    let systemd = ThroughSystemd {
        bus,
        handle: Handle::current(),
    };
    let (asked, name) = (request.clone(), request.name.to_string());
    let result = ctx
        .blocking(move || export(&asked, &places, &systemd, &progress, &cancel))
        .await;
    let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message.as_str());
    audit(&name, "export", outcome);
    tell(
        ctx,
        &request,
        &result.map_err(|error| closed_pipe(error, &request.target))?,
    )?;
    Ok(0)
}

fn target(ctx: &Ctx, args: &Args) -> Result<(Target, Format), CliError> {
    if args.file == "-" {
        if ctx.voice.json && !args.dry_run {
            let message = "the archive goes to standard output, where JSON cannot go";
            return Err(CliError::usage(message).hint("leave out --json"));
        }
        return Ok((Target::Stdout, args.format.unwrap_or(Format::Tar)));
    }
    if let Some(text) = args.file.to_str().and_then(|text| text.strip_prefix("oci:")) {
        let hint = "as in `machinist export web oci:DIR:TAG`";
        let layout = Layout::parse(text, args.force).map_err(|reason| {
            CliError::usage(format!("'oci:{}' cannot name an image: {reason}", shown(text))).hint(hint)
        })?;
        let format = args.format.unwrap_or(Format::Gzip);
        if format == Format::Xz {
            let message = "no tool reads layers of images that are compressed with xz";
            return Err(CliError::usage(message).hint("choose tar.gz, tar.zst or tar"));
        }
        return Ok((Target::Layout(layout), format));
    }
    let path = PathBuf::from(&args.file);
    let is_disk = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("raw"));
    if is_disk && args.format.is_none() {
        return Ok((Target::Disk(path, args.force), Format::Tar));
    }
    let format = args.format.or_else(|| Format::of_file(&path)).ok_or_else(|| {
        CliError::usage(format!(
            "what kind of archive '{}' is to be, its name does not say",
            shown(&path)
        ))
        .hint("FILE.tar.zst, FILE.tar.xz, FILE.tar.gz, FILE.tar, FILE.raw and oci:DIR:TAG are written, or any name with --format")
    })?;
    Ok((Target::File(path, args.force), format))
}

/// Who reads the archive may have had enough: that is told by the status alone.
fn closed_pipe(error: CliError, target: &Target) -> CliError {
    let is_closed = *target == Target::Stdout && error.causes.iter().any(|cause| cause.starts_with("Broken pipe"));
    if is_closed {
        CliError::new(Kind::ClosedPipe, error.message)
    } else {
        error
    }
}

fn tell(ctx: &Ctx, request: &Request, exported: &Exported) -> Result<(), CliError> {
    let tree = &exported.tree;
    let place = match &request.target {
        Target::Stdout => "standard output".to_owned(),
        Target::File(path, _) | Target::Disk(path, _) => shown(path),
        Target::Layout(layout) => format!("'{}' in {}", layout.tag, shown(&layout.directory)),
    };
    if tree.skipped.kernel > 0 {
        let what = format!("{} places that are the kernel's were left out", tree.skipped.kernel);
        ctx.voice.warning(&what);
    }
    let what = if exported.is_disk {
        format!("a disk of {}, as it is", bytes(tree.bytes))
    } else {
        let (files, directories, links) = (tree.files, tree.directories, tree.links);
        format!(
            "{files} files, {directories} directories, {links} links, {}",
            bytes(tree.bytes)
        )
    };
    ctx.voice
        .status(&format!("exported {} to {place}: {what}", request.name));
    if ctx.voice.json {
        let mut row = serde_json::to_value(exported).unwrap_or_default();
        row["machine"] = request.name.to_string().into();
        row["result"] = "exported".into();
        row["path"] = match &request.target {
            Target::Stdout => serde_json::Value::Null,
            Target::File(path, _) | Target::Disk(path, _) => path.to_string_lossy().into(),
            Target::Layout(layout) => layout.directory.to_string_lossy().into(),
        };
        if let Target::Layout(layout) = &request.target {
            row["tag"] = layout.tag.as_str().into();
        }
        ctx.voice.json(&[row])?;
    }
    Ok(())
}
