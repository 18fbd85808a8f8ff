//! `machinist start`

use std::thread;
use std::time::Duration;

use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::oneshot;

use super::complete;
use super::context::{Ctx, is_root};
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::group::Sequence;
use super::names::Pool;
use crate::machine::{Cancel, MachineName};
use crate::ops::linked::changed::{Changed, changed};
use crate::ops::start::{StartOptions, Started, is_to_start, start};
use crate::sys::files::shown;

/// Start machines and wait until they run
///
/// Starts systemd-nspawn@NAME.service and waits for its job, and until the machine's PID 1 runs. When it fails, the
/// line of the journal that explains it is shown. Starting a machine that runs is no error. When a layer that a linked machine
/// lies on was changed by hand, a warning names what was.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist start web                      Start one machine
  machinist start 'web-*' db --wait        Start several, and wait until they have booted
  machinist start web --wait --timeout 60  Give its boot a minute (exit status 124 after that)
  machinist start --group shop             The machines of a group, in their order")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(required_unless_present = "group", value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Also wait for the guest's own boot to finish
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "90", value_parser = super::seconds)]
    timeout: Duration,
    /// The machines of this group, one after the other in the order of `machinist order`
    #[arg(long, value_name = "GROUP", conflicts_with = "names")]
    group: Option<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// How much longer than the start it may take to look at the layers below: at each of their files, wherever those are.
const PATIENCE: Duration = Duration::from_secs(2);

/// The nice value of who gives way to all others, see setpriority(2): Linux has one for each thread.
const LEAST: i32 = 19;

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let group = args.group.as_deref();
    let (names, sequence) = Sequence::of(ctx, &args.names, group, Pool::Images, false).await?;
    let bus = ctx.bus().await?;
    if args.dry_run {
        let wait = if args.wait { " and for its boot" } else { "" };
        return plan_each(ctx, &names, async |name| {
            Ok(vec![if is_to_start(bus, &name).await? {
                format!("start unit {} and wait for its job{wait}", name.unit())
            } else {
                format!("nothing: {name} is running already")
            }])
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    let cancel = Cancel::default();
    let changed = look_at_layers(ctx, &names, &cancel);
    let options = StartOptions {
        wait: args.wait,
        timeout: args.timeout,
    };
    let status = each(ctx, "start", names, async |name| {
        let _turn = sequence.turn(&name).await;
        Ok(match start(bus, &jobs, &name, options).await? {
            Started::Now => Outcome::new("started", format!("started {name}")),
            Started::Already => Outcome::new("already-running", format!("{name} is running already")),
        })
    })
    .await?;
    if let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, changed).await {
        for changed in &found {
            tell(ctx, changed);
        }
    }
    cancel.cancel();
    Ok(status)
}

/// Whether a layer was changed by hand that one of these machines lies on; nothing without root, who alone can tell.
fn look_at_layers(ctx: &Ctx, names: &[MachineName], cancel: &Cancel) -> oneshot::Receiver<Vec<Changed>> {
    let (names, places, cancel) = (names.to_vec(), ctx.places.clone(), cancel.clone());
    let (tell, told) = oneshot::channel();
    thread::spawn(move || {
        // The guests that boot meanwhile go first: the thread ends with this, and has nothing else to do.
        let _ = setpriority_process(Some(gettid()), LEAST);
        let found = is_root().then(|| changed(&names, &places, &cancel));
        let _ = tell.send(found.unwrap_or_default());
    });
    told
}

fn tell(ctx: &Ctx, changed: &Changed) {
    let machines: Vec<&str> = changed.machines.iter().map(MachineName::as_str).collect();
    ctx.voice.warning(&format!(
        "'{}' was changed, in a layer below {}: bring it back from a backup, or remove '{}' if that is meant to be",
        shown(&changed.path),
        machines.join(", "),
        shown(&changed.seal)
    ));
}
