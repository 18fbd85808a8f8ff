//! `machinist quota`

use serde_json::json;
use tokio::runtime::Handle;

use super::complete;
use super::context::{Ctx, is_root};
use super::each::{Outcome, each, look_at_each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use super::sweep::ThroughSystemd;
use crate::limit::{DiskLimit, read_disk_limit};
use crate::machine::MachineName;
use crate::machine::quota::Quota;
use crate::machine::text::{bytes, printable};
use crate::ops::OpError;
use crate::ops::quota::{Done, Order, look, plan, set};
use crate::output::table::{Column, TableArgs, View};
use crate::sys::bus::Bus;

/// Limit what machines take of the disk, or show it
///
/// The limit holds at once and for good, also in a running machine: what it would write beyond is refused there as "disk
/// quota exceeded" or "no space left". Without SIZE what is taken and allowed is shown, of all machines if none is named.
/// `none` takes the limit away.
///
/// On btrfs systemd-machined limits the image's subvolume; quotas have to be on there, and what is in subvolumes inside of
/// it, such as a machine can make itself, is not counted. On ext4, XFS and others the image is put into a project of its
/// own, whose number stands in the image; they have to be mounted with the option prjquota. Root of a machine without
/// private users can leave its project, and elsewhere than on XFS the limit is not for it. Symbolic links, fifos and devices
/// that are in an image before can be put into no project: a program that renames one is told "cross-device link", for which mv
/// makes a copy. Those of a clone are in its project.
///
/// A clone has the same limit, and counts for itself. `rename` keeps it, `remove` takes it along.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist quota                           What all machines take, and may
  machinist quota web                       What this one does
  machinist quota web 10G                   No more than that
  machinist quota 'web-*' 2.5G --dry-run    See what would be done
  machinist quota web none                  As much as there is room for
  machinist quota --json                    For scripts

SIZE is in bytes, or with K, M, G or T, powers of 1024. The last of several words is one if it
reads so: a machine of such a name comes first.

Columns: machine, limit, used, kept_by (btrfs or project); and project, path, reason (why there
can be no limit). What is not counted is `-`, in JSON null.")]
pub(super) struct Args {
    /// Machines, or patterns of image names, and how much each may take
    #[arg(value_name = "NAME|SIZE", add = complete::images())]
    words: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    table: TableArgs,
}

fn size(bytes_or_none: Option<u64>) -> String {
    bytes_or_none.map_or_else(|| "-".to_owned(), bytes)
}

const COLUMNS: &[Column<Quota>] = &[
    Column {
        key: "machine",
        shown: true,
        value: |row| json!(row.machine),
        text: None,
    },
    Column {
        key: "limit",
        shown: true,
        value: |row| json!(row.limit),
        text: Some(|row| size(row.limit)),
    },
    Column {
        key: "used",
        shown: true,
        value: |row| json!(row.used),
        text: Some(|row| size(row.used)),
    },
    Column {
        key: "kept_by",
        shown: true,
        value: |row| json!(row.kept_by),
        text: None,
    },
    Column {
        key: "project",
        shown: false,
        value: |row| json!(row.project),
        text: None,
    },
    Column {
        key: "path",
        shown: false,
        value: |row| json!(row.path),
        text: None,
    },
    Column {
        key: "reason",
        shown: false,
        value: |row| json!(row.reason),
        text: None,
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    // What is wrong with the columns is said before anything is looked up.
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let (names, limit) = split(&args.words)?;
    match limit {
        Some(limit) => change(ctx, names, limit.bytes(), args.dry_run).await,
        None if args.dry_run => {
            Err(CliError::usage("--dry-run is for a change").hint("such as `machinist quota web 10G --dry-run`"))
        }
        None => show(ctx, names, &view).await,
    }
}

/// Names, and the limit if there is one: what it is to be, or none.
fn split(words: &[String]) -> Result<(&[String], Option<DiskLimit>), CliError> {
    let Some((last, names)) = words.split_last().filter(|(_, names)| !names.is_empty()) else {
        return Ok((words, None));
    };
    match read_disk_limit(last) {
        Ok(limit) => Ok((names, Some(limit))),
        Err(error) if last.starts_with(|c: char| c.is_ascii_digit() || c == '-') || last.is_empty() => {
            Err(CliError::usage(format!("'{}' is no size: {error}", printable(last)))
                .hint(format!("if it is a machine, name it first: `machinist quota {last} …`")))
        }
        Err(_) => Ok((words, None)),
    }
}

async fn show(ctx: &Ctx, words: &[String], view: &View<'_, Quota>) -> Result<u8, CliError> {
    let bus = ctx.bus().await?;
    let names = if words.is_empty() {
        let images = bus.images().await?;
        images.into_iter().filter_map(|row| row.0.parse().ok()).collect()
    } else {
        resolve(ctx, words, Pool::Images).await?
    };
    let (quotas, status) = look_at_each(ctx, &names, async |name| {
        let places = ctx.places.clone();
        let Some(image) = bus.find_image_state(name.as_str()).await? else {
            return Err(OpError::NoImage { name: name.to_string() }.into());
        };
        let quota = ctx.blocking(move || look(&name, &image, &places)).await?;
        if let Some(reason) = quota.reason.as_ref().filter(|_| !words.is_empty()) {
            ctx.voice
                .warning(&format!("{} cannot be limited: {reason}", quota.machine));
        }
        Ok(quota)
    })
    .await;
    view.print(quotas, "machine", ctx.voice)?;
    Ok(status)
}

async fn change(ctx: &Ctx, words: &[String], limit: Option<u64>, dry_run: bool) -> Result<u8, CliError> {
    let names = resolve(ctx, words, Pool::Images).await?;
    let bus = ctx.bus().await?;
    let systemd = bus.systemd_version().await?;
    let order = |name: MachineName| Order {
        name,
        systemd,
        limit,
        is_root: is_root(),
    };
    if dry_run {
        return plan_each(ctx, &names, async |name| {
            let (order, places, systemd) = (order(name), ctx.places.clone(), through(bus));
            ctx.blocking(move || plan(&order, &places, &systemd)).await
        })
        .await;
    }
    ctx.config()?;
    ctx.authorize().await;
    each(ctx, "quota", names, async |name| {
        let (progress, cancel) = (ctx.progress(name.as_str()), ctx.cancel.clone());
        let (order, places, systemd) = (order(name), ctx.places.clone(), through(bus));
        let done = ctx
            .blocking(move || set(&order, &places, &systemd, &progress, &cancel))
            .await?;
        Ok(outcome(ctx, &done, limit))
    })
    .await
}

fn through(bus: &Bus) -> ThroughSystemd {
    ThroughSystemd {
        bus: bus.clone(),
        handle: Handle::current(),
    }
}

fn outcome(ctx: &Ctx, done: &Done, limit: Option<u64>) -> Outcome {
    let Done {
        changed,
        quota,
        subvolumes,
        ..
    } = done;
    let name = &quota.machine;
    if let (Some(limit), Some(used)) = (quota.limit, quota.used)
        && used >= limit
    {
        ctx.voice.warning(&format!(
            "{name} takes {} already: it can write nothing before it has removed something",
            bytes(used)
        ));
    }
    if done.root_may_exceed {
        ctx.voice.warning(&format!(
            "root of {name} may write beyond it, for want of private users: `machinist config add {name} \
             Exec.DropCapability=CAP_SYS_RESOURCE` takes that from it at its next start"
        ));
    }
    if !subvolumes.is_empty() {
        let list: Vec<String> = subvolumes.iter().map(crate::sys::files::shown).collect();
        ctx.voice.warning(&format!(
            "{name}: what is in subvolumes inside of it is not counted: {}",
            list.join(", ")
        ));
    }
    let taken = quota
        .used
        .map(|used| format!("; it takes {}", bytes(used)))
        .unwrap_or_default();
    let (result, line) = match (changed, limit) {
        (true, Some(limit)) => ("limited", format!("limited {name} to {}{taken}", bytes(limit))),
        (true, None) => ("unlimited", format!("{name} has no limit any more{taken}")),
        (false, Some(limit)) => (
            "unchanged",
            format!("{name} is limited to {} already{taken}", bytes(limit)),
        ),
        (false, None) => ("unchanged", format!("{name} has no limit")),
    };
    Outcome::new(result, line)
        .with("limit", quota.limit)
        .with("used", quota.used)
        .with("kept_by", json!(quota.kept_by))
        .with("project", quota.project)
        .with("path", quota.path.as_str())
        .with("subvolumes", json!(subvolumes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_words_may_be_a_size() {
        let read = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            split(&words).map(|(names, limit)| (names.join(" "), limit))
        };
        assert_eq!(read("").unwrap(), (String::new(), None));
        assert_eq!(read("web").unwrap(), ("web".into(), None));
        assert_eq!(read("10G").unwrap(), ("10G".into(), None));
        assert_eq!(read("web db").unwrap(), ("web db".into(), None));
        assert_eq!(
            read("web db 10G").unwrap(),
            ("web db".into(), Some(DiskLimit::Bytes(10 << 30)))
        );
        assert_eq!(read("web none").unwrap(), ("web".into(), Some(DiskLimit::None)));
        assert_eq!(read("none web").unwrap(), ("none web".into(), None));
        for line in ["web 0", "web 10X", "web 5K"] {
            let error = read(line).unwrap_err();
            assert_eq!(error.kind, super::super::error::Kind::Usage, "{line}");
        }
    }
}
