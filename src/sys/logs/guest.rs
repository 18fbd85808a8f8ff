//! The journal of a guest: its files are opened here, path-safely, and read by a process without privilege ([`reader`]).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Dir, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, sendmsg,
    shutdown, socketpair,
};

use super::entry::{CAUGHT_UP, Entries, NOTE};
use super::reader::{self, FILE, FILES_MAX, LOOK, Order, PACKET_MAX, START};
use super::{Gone, Item, Sink};
use crate::sys::files::{Kind, Root};
use crate::sys::guest::Leader;
use crate::sys::process::describe;

/// Where a machine keeps its journal, and where it does until the disk is there, or always if it is told so.
const LASTING: &str = "var/log/journal";
const VOLATILE: &str = "run/log/journal";
/// What exists before any of them, and is watched for them to come.
const ABOVE: [&str; 3] = ["run", "run/log", "var/log"];
/// How many files of a machine are read: the newest.
const NEWEST: usize = FILES_MAX / 2;
/// How many names of a directory are looked at.
const NAMES_MAX: usize = 16 << 10;
/// How many directories of a machine without an ID are.
const DIRECTORIES_MAX: usize = 64;
/// How often files are looked for, at most.
const PAUSE: Duration = Duration::from_millis(20);
/// How many complaints about the files of a machine are passed on.
const NOTES_MAX: usize = 8;

/// Where a guest's journal is.
#[derive(Debug)]
pub enum Guest {
    /// In a machine that runs, whose leader this is.
    Running(Arc<Leader>),
    /// In an image, where nothing runs.
    Image(PathBuf),
}

impl Guest {
    fn root(&self) -> Option<Root> {
        match self {
            Self::Running(leader) => leader.root(),
            Self::Image(path) => Root::open(path).ok(),
        }
    }

    fn places(&self) -> &'static [&'static str] {
        match self {
            Self::Running(_) => &[LASTING, VOLATILE],
            // Whatever lies there is of no run of the machine.
            Self::Image(_) => &[LASTING],
        }
    }
}

/// Tells all entries of a guest's journal to `sink`, and with `order.follow` those that come while it runs. Blocks.
pub(super) fn tell(guest: &Guest, mut order: Order, mut sink: Sink) {
    let Guest::Running(leader) = guest else {
        // Nothing can be added.
        order.follow = false;
        let _ = tell_files(guest, None, &order, &mut sink);
        return;
    };
    let _ = tell_files(guest, Some(leader), &order, &mut sink);
}

fn tell_files(guest: &Guest, leader: Option<&Leader>, order: &Order, sink: &mut Sink) -> Result<(), Gone> {
    let Some(root) = guest.root() else {
        return sink.note("cannot look into the machine: it has stopped, or its image is no directory");
    };
    let mut files = Files {
        root,
        places: guest.places(),
        known: BTreeSet::new(),
    };
    // Before the first look, so that nothing is missed between the two.
    let watch = if order.follow { Watch::new(&files).ok() } else { None };
    let (found, left_out) = files.new_ones();
    if left_out > 0 {
        sink.note(&format!(
            "{left_out} of the oldest files of its journal are left out: there are too many"
        ))?;
    }
    if found.is_empty() && watch.is_none() {
        return Ok(());
    }
    let started = start_reader(order);
    let (mut child, control, entries) = match started {
        Ok(started) => started,
        Err(error) => return sink.note(&format!("cannot start the reader of its journal: {error}")),
    };
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(entries, sink));
        let fed = feed(&control, found);
        if let (Ok(()), Some(watch), Some(leader)) = (&fed, watch, leader) {
            let _ = follow(&control, &watch, &mut files, leader);
        }
        // It ends when it has told all.
        let _ = shutdown(&control, Shutdown::Write);
        let said = listener.join().unwrap_or(Err(Gone));
        if said.is_err() {
            let _ = child.kill();
        }
    });
    match child.wait() {
        Ok(status) if !status.success() => {
            let how = describe(status);
            sink.note(&format!("the reader of its journal {how}: entries may be missing"))
        }
        _ => Ok(()),
    }
}

fn start_reader(order: &Order) -> io::Result<(Child, OwnedFd, PipeReader)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (entries, writer) = io::pipe()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "no program of the system but this one, with a socket as input"
    )]
    let mut command = std::process::Command::new("/proc/self/exe");
    let child = command
        .arg0(reader::JOB)
        .args(order.words())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(writer))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok((child, ours, entries))
}

/// Passes on what the reader says, which is trusted no more than the files are.
fn listen(entries: PipeReader, sink: &mut Sink) -> Result<(), Gone> {
    let mut entries = Entries::new(entries);
    let mut batch = super::Batch::default();
    let mut notes = 0;
    while let Ok(Some(entry)) = entries.next() {
        if let Some(note) = entry.text(NOTE) {
            notes += 1;
            if notes <= NOTES_MAX {
                sink.send(Item::Note(format!("its journal: {note}")))?;
            }
            continue;
        }
        if entry.get(CAUGHT_UP).is_some() {
            sink.send_batch(&mut batch)?;
            sink.caught_up();
            continue;
        }
        batch.push(super::From::Guest, entry);
        if batch.is_full() || entries.may_wait() {
            sink.send_batch(&mut batch)?;
        }
    }
    sink.send_batch(&mut batch)
}

fn feed(control: &OwnedFd, files: Vec<(OsString, File)>) -> io::Result<()> {
    for (name, file) in files {
        send(control, FILE, &name, Some(&file))?;
    }
    send(control, START, OsString::new().as_os_str(), None)
}

fn send(control: &OwnedFd, kind: u8, name: &std::ffi::OsStr, file: Option<&File>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = file.iter().map(std::os::fd::AsFd::as_fd).collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let name = name.as_bytes();
    let packet = [&[kind], &name[..name.len().min(PACKET_MAX - 1)]].concat();
    // Of looks one is enough.
    let wait = if kind == LOOK {
        SendFlags::DONTWAIT
    } else {
        SendFlags::empty()
    };
    match sendmsg(
        control,
        &[IoSlice::new(&packet)],
        &mut ancillary,
        SendFlags::NOSIGNAL | wait,
    ) {
        Err(rustix::io::Errno::AGAIN) if kind == LOOK => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// Has the reader look whenever something changes, until the machine stops or the reader is gone.
fn follow(control: &OwnedFd, watch: &Watch, files: &mut Files, leader: &Leader) -> io::Result<()> {
    loop {
        let pidfd = leader.pidfd();
        // The reader's end is always told.
        let mut fds = [
            PollFd::new(&watch.fd, PollFlags::IN),
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(control, PollFlags::empty()),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let (ended, gone) = (!fds[1].revents().is_empty(), !fds[2].revents().is_empty());
        if gone {
            return Ok(());
        }
        // What a machine does at full speed is looked at in good time.
        std::thread::sleep(PAUSE);
        if watch.has_news()? || ended {
            // A directory first: what is made in it after that is told.
            watch.all_of(files);
            for (name, file) in files.new_ones().0 {
                send(control, FILE, &name, Some(&file))?;
            }
        }
        send(control, LOOK, OsString::new().as_os_str(), None)?;
        if ended {
            return Ok(());
        }
    }
}

/// The files of a journal.
struct Files {
    root: Root,
    places: &'static [&'static str],
    /// Those that were found: device and inode.
    known: BTreeSet<(u64, u64)>,
}

impl Files {
    /// The directories in which journald of the machine has files: those of its own ID, by which clones and machines inside
    /// of it are left out; none if it is to get one, as a clone that has not run; any, if it knows nothing of IDs.
    fn directories(&self) -> Vec<PathBuf> {
        let file = "etc/machine-id";
        let id = match self.root.kind(file) {
            Ok(None) => None,
            _ => Some(self.root.read(file, 256).unwrap_or_default()),
        };
        let id = id.map(|bytes| String::from_utf8(bytes.trim_ascii().to_vec()).unwrap_or_default());
        if id.as_ref().is_some_and(|id| !is_id(id.as_bytes())) {
            return Vec::new();
        }
        let mut directories = Vec::new();
        for place in self.places.iter().map(Path::new) {
            match &id {
                Some(id) => directories.push(place.join(id)),
                None => directories.extend(
                    names(&self.root, place)
                        .filter(|name| is_id(name.as_bytes()))
                        .map(|name| place.join(name))
                        .filter(|path| matches!(self.root.kind(path), Ok(Some(Kind::Directory))))
                        .take(DIRECTORIES_MAX),
                ),
            }
        }
        directories
    }

    /// Opens those that were not known, the oldest first; and how many there would be more.
    fn new_ones(&mut self) -> (Vec<(OsString, File)>, usize) {
        let mut seen = BTreeSet::new();
        let mut found: Vec<(SystemTime, OsString, PathBuf)> = Vec::new();
        let mut left_out = 0;
        for directory in self.directories() {
            for name in names(&self.root, &directory) {
                let bytes = name.as_bytes();
                if !(bytes.ends_with(b".journal") || bytes.ends_with(b".journal~")) {
                    continue;
                }
                let path = directory.join(&name);
                let Some((identity, changed)) = self.identity(&path) else {
                    continue;
                };
                if seen.insert(identity) && !self.known.contains(&identity) {
                    found.push((changed, name, path));
                }
            }
        }
        found.sort();
        if found.len() > NEWEST {
            left_out = found.len() - NEWEST;
            found.drain(..left_out);
        }
        self.known = seen;
        let open = |(_, name, path): (SystemTime, OsString, PathBuf)| Some((name, self.root.open_file(path).ok()?));
        (found.into_iter().filter_map(open).collect(), left_out)
    }

    /// What file it is, and when it was changed; `None` if it is no regular file.
    fn identity(&self, path: &Path) -> Option<((u64, u64), SystemTime)> {
        let found = self.root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
        let stat = rustix::fs::fstat(&found).ok()?;
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let is_file = Kind::from_mode(stat.st_mode) == Kind::File;
        is_file.then_some(((stat.st_dev, stat.st_ino), changed))
    }
}

/// The names in a directory, not more than a few thousand; none if there is no such directory.
fn names(root: &Root, directory: &Path) -> impl Iterator<Item = OsString> + use<> {
    let fd = root.open_at(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK);
    let entries = fd.and_then(Dir::new).ok().into_iter().flatten();
    entries
        .take(NAMES_MAX)
        .map_while(Result::ok)
        .map(|entry| OsString::from_vec(entry.file_name().to_bytes().to_vec()))
}

/// Whether it is a machine ID.
fn is_id(text: &[u8]) -> bool {
    text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit)
}

/// Tells when files of a journal come or change: see inotify(7).
struct Watch {
    fd: OwnedFd,
}

impl Watch {
    fn new(files: &Files) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let this = Self { fd };
        this.all_of(files);
        Ok(this)
    }

    /// Watches what there is. A second time changes nothing.
    fn all_of(&self, files: &Files) {
        let comes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        for place in ABOVE.iter().chain(files.places) {
            self.one(files, Path::new(place), comes);
        }
        for directory in files.directories() {
            self.one(files, &directory, comes | WatchFlags::MODIFY);
        }
    }

    fn one(&self, files: &Files, place: &Path, events: WatchFlags) {
        if let Ok(directory) = files.root.open_at(place, OFlags::PATH | OFlags::DIRECTORY) {
            let path = crate::sys::files::magic_link(directory.as_fd());
            // What cannot be watched is not told at once.
            let _ = inotify::add_watch(&self.fd, path, events);
        }
    }

    /// Takes all that is waiting: whether anything but a change of a file is among it.
    fn has_news(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut events = inotify::Reader::new(&self.fd, &mut buffer);
        let mut news = false;
        // A machine can make them as quickly as they are taken.
        for _ in 0..4096 {
            match events.next() {
                Ok(event) => news |= event.events() != ReadFlags::MODIFY,
                Err(rustix::io::Errno::AGAIN) => return Ok(news),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(news)
    }
}
