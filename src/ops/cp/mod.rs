//! Files copied between the host and machines, or from one machine to another.
//!
//! [`side`] opens both ends, path-safely; [`walk`] copies a tree, [`pack`] and [`unpack`] do streams; [`ids`] says whose the
//! copies are. All of it happens on a thread that makes files as root of the machine that they are for: where a machine's
//! filesystems know its own users only, the host's root could make none.

mod attributes;
pub(super) mod header;
pub(super) mod ids;
mod kernel;
pub(super) mod pack;
pub(super) mod side;
mod unpack;
mod walk;

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

pub use side::Tree;

use self::ids::{Ids, Translation};
use self::pack::Pack;
use self::side::Side;
use self::unpack::unpack;
use self::walk::Walk;
use super::{OpError, Places};
use crate::machine::{Cancel, Location, Report};
use crate::sys::files::{FileError, Kind, shown};

/// How often the progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// Descriptors that a deep tree takes.
const DESCRIPTORS: u64 = 16 << 10;
/// Stack of the thread that walks down a tree.
const STACK: usize = 32 << 20;
/// Bytes that are written to a stream at once.
const PIECE: usize = 256 << 10;
/// What standard output is called.
pub(super) const STDOUT: &str = "standard output";

/// How it is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Directories, too; links stay links.
    pub recursive: bool,
    /// With owners, times, extended attributes, ACLs, hard links.
    pub archive: bool,
    /// On the way to the host, too: set-user-ID bits, file capabilities, devices.
    pub keep_special: bool,
}

/// What is copied where.
#[derive(Debug)]
pub struct Order {
    /// From.
    pub source: Location,
    /// To.
    pub target: Location,
    /// How.
    pub options: Options,
    /// The files of the machine that it comes from, if it does.
    pub source_tree: Option<Tree>,
    /// Of the one that it goes to.
    pub target_tree: Option<Tree>,
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Device nodes.
    pub devices: u64,
    /// Sockets, which only who listens on one can make.
    pub sockets: u64,
    /// What lies on filesystems of the kernel's: proc, sysfs and the like.
    pub kernel: u64,
    /// Extended attributes that the filesystem does not take, or that are no archive's to give.
    pub xattrs: u64,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Files that are neither directories nor links; each name counts.
    pub files: u64,
    /// Directories that were made.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Of the contents, holes counted.
    pub bytes: u64,
    /// Left out.
    pub skipped: Skipped,
    /// Files that lost their set-user-ID or set-group-ID bit, or file capabilities.
    pub stripped: u64,
}

/// Copies. After an error nothing half-made is left: a file or directory that was not there before is there whole, or not
/// at all; what a directory that was there has got already stays. Blocks.
pub fn copy(order: Order, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Copied, OpError> {
    let copied = AtomicU64::new(0);
    let trees: Vec<Tree> = [&order.source_tree, &order.target_tree]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    // Whoever waits for the end of a stream has to hear of a machine's end, too.
    let lasts = || trees.iter().all(Tree::lasts);
    let result = deep(&copied, &lasts, report, cancel, |stop| {
        work(order, places, report, stop, &copied)
    });
    match result {
        Err(error) if error.is_interruption() && !cancel.is_cancelled() => Err(OpError::Option {
            message: "the machine stopped while it was copied".to_owned(),
            hint: "nothing half-made is left: a machine that does not run can be copied, too".to_owned(),
        }),
        result => result,
    }
}

/// Does what walks down a tree on a thread with room for that, until it has ended, `cancel` is set, or what it walks through does
/// not last; tells how much was copied meanwhile.
pub(super) fn deep<T: Send>(
    copied: &AtomicU64,
    lasts: &dyn Fn() -> bool,
    report: &dyn Report,
    cancel: &Cancel,
    work: impl FnOnce(&Cancel) -> Result<T, OpError> + Send,
) -> Result<T, OpError> {
    let (end, ended) = channel();
    let stop = Cancel::default();
    thread::scope(|scope| {
        let stop = &stop;
        let work = move || {
            let result = work(stop);
            // Nobody may listen any more: that is no matter.
            let _ = end.send(());
            result
        };
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(OpError::path("start", "a thread"))?;
        while ended.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
            if cancel.is_cancelled() || !lasts() {
                stop.cancel();
            }
            report.progress(copied.load(Ordering::Relaxed), None);
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What [`copy`] would do; looks, and touches nothing.
pub fn plan(order: Order, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Vec<String>, OpError> {
    let (source, target) = (order.source.clone(), order.target.clone());
    let from = open(&source, order.source_tree, false, places, report, cancel)?;
    let to = open(&target, order.target_tree, false, places, report, cancel)?;
    let (source, target) = match (&source, &target) {
        (Location::Stream, _) => ("standard input".to_owned(), side::directory(&to, &target)?.1),
        (_, Location::Stream) => (
            find(&from, &source, order.options)?.label.display().to_string(),
            "-".into(),
        ),
        _ => {
            let found = find(&from, &source, order.options)?;
            let target = side::target(&to, &target, &found, &from)?;
            (shown(&found.label), target.label().to_path_buf())
        }
    };
    let target = match shown(&target) {
        stream if stream == "-" => "standard output".to_owned(),
        target => format!("'{target}'"),
    };
    let verb = if source == "standard input" { "unpack" } else { "copy" };
    let source = if source == "standard input" {
        source
    } else {
        format!("'{source}'")
    };
    let preposition = if verb == "unpack" { "in" } else { "to" };
    Ok(vec![format!("{verb} {source} {preposition} {target}")])
}

fn open(
    location: &Location,
    tree: Option<Tree>,
    is_written: bool,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Side, OpError> {
    match (location.machine(), tree) {
        (Some(name), Some(tree)) => Side::machine(name, tree, is_written, places, report, cancel),
        _ => Side::host(),
    }
}

/// What is to be copied, if it can be.
fn find(side: &Side, location: &Location, options: Options) -> Result<side::Found, OpError> {
    let found = side::find(side, location, options.recursive)?;
    let refused = |message: String, hint: &str| {
        Err(OpError::Option {
            message,
            hint: hint.to_owned(),
        })
    };
    let label = shown(&found.label);
    match found.kind() {
        Kind::Directory if !options.recursive => refused(
            format!("'{label}' is a directory"),
            "copy it with all that is in it: `cp -r`, or `cp -a` with owners",
        ),
        kind @ (Kind::CharDevice | Kind::BlockDevice) if !options.keep_special => refused(
            format!("cannot copy '{label}': it is a {kind}"),
            "a device node is copied as such, not what it reads: `cp -a --keep-special`",
        ),
        Kind::Socket => refused(
            format!("cannot copy '{label}': it is a socket"),
            "only the program that listens on it can make it",
        ),
        kind @ (Kind::Fifo | Kind::CharDevice | Kind::BlockDevice) if !options.recursive => {
            Err(FileError::NotRegular {
                action: "copy",
                path: found.label,
                kind,
            }
            .into())
        }
        _ => Ok(found),
    }
}

/// All of it, on a thread that does nothing else before it ends.
fn work(
    order: Order,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
    copied: &AtomicU64,
) -> Result<Copied, OpError> {
    let Order {
        source,
        target,
        options,
        ..
    } = order;
    let from = open(&source, order.source_tree, false, places, report, cancel)?;
    let to = open(&target, order.target_tree, true, places, report, cancel)?;
    let check = || from.check().and_then(|()| to.check());
    let strips = to.name.is_none() && !options.keep_special;
    let ids = |from: &Ids, to: &Ids| Translation {
        from: from.clone(),
        to: to.clone(),
        capabilities: !strips,
    };
    raise_descriptors();
    if target == Location::Stream {
        let found = find(
            &from,
            &source,
            Options {
                recursive: true,
                ..options
            },
        )?;
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(OpError::path("write", "standard output"))?;
        let out = BufWriter::with_capacity(PIECE, File::from(stdout));
        let mut pack = Pack::new(
            (out, Path::new(STDOUT)),
            options,
            ids(&from.ids, &Ids::host()),
            cancel,
            &check,
            copied,
        );
        pack.run(&found)?;
        check()?;
        return Ok(pack.done);
    }
    if let Some(name) = &to.name {
        let (uid, gid) = to.ids.root();
        crate::sys::thread_user::make_files_as(uid, gid).map_err(|error| OpError::Option {
            message: format!("cannot make files as root of machine '{name}': {error}"),
            hint: "run it with all capabilities".to_owned(),
        })?;
    }
    if source == Location::Stream {
        let (directory, label) = side::directory(&to, &target)?;
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        let stdin = stdin.map_err(OpError::path("read", "standard input"))?;
        let ids = ids(&Ids::host(), &to.ids);
        return unpack(
            File::from(stdin),
            (&directory, &label),
            options,
            &ids,
            &check,
            report,
            cancel,
        );
    }
    let found = find(&from, &source, options)?;
    let target = side::target(&to, &target, &found, &from)?;
    let mut walk = Walk::new((options, strips), ids(&from.ids, &to.ids), cancel, &check, copied);
    walk.run(&found, target)?;
    Ok(walk.done)
}

/// Two descriptors for each directory on the way down.
pub(super) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if limit.current.is_some_and(|current| current < wanted) {
        // A tree that is too deep for what there is says so itself.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            },
        );
    }
}
