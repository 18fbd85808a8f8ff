//! The reader: a process of its own that is handed the files of a guest's journal, open, and tells their entries.
//!
//! The files may be made to harm whoever reads them. So this process is nobody, sees no file but these, may do nothing but
//! read and write ([`allow_reading_only`]), and has little memory: a reader that is taken over can lie about the
//! machine's journal, as the machine itself can, and no more.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};

use super::entry::{CAUGHT_UP, NOTE, write_field};
use super::file::{Damage, Identity, JournalFile, Position, Stamp, Wanted};
use crate::sys::raw::confine::allow_reading_only;

/// What it is called, as argument 0.
pub const JOB: &str = "machinist: journal reader";
/// A packet with a file, and its name.
pub(super) const FILE: u8 = b'F';
/// A packet that says: these are the files that are there now.
pub(super) const START: u8 = b'S';
/// A packet that says: some of them may have grown.
pub(super) const LOOK: u8 = b'L';
/// The longest packet, in bytes.
pub(super) const PACKET_MAX: usize = 512;
/// How many files may be open.
pub(super) const FILES_MAX: usize = 512;

/// `nobody`, of systemd and the kernel.
const NOBODY: u32 = 65534;
/// How much memory it may have, in bytes.
const MEMORY: u64 = 384 << 20;
/// How much is written at once.
const CHUNK: usize = 64 << 10;
/// How many entries are remembered, to tell none twice: a power of two.
const REMEMBERED: usize = 32 << 10;

/// What to tell.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) wanted: Wanted,
    /// µs since 1970, both included.
    pub(super) since: u64,
    pub(super) until: u64,
    /// Of this boot only.
    pub(super) boot: Option<u128>,
    /// At least the last so many of what is there at the start; all if `None`.
    pub(super) lines: Option<u64>,
    /// And what is added later.
    pub(super) follow: bool,
}

impl Order {
    /// As words of a command line, see [`Order::parse`].
    pub(super) fn words(&self) -> Vec<String> {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        vec![
            or_none(self.wanted.names.as_ref().map(|names| names.join(","))),
            self.wanted.value_max.to_string(),
            self.since.to_string(),
            self.until.to_string(),
            or_none(self.boot.map(|boot| format!("{boot:032x}"))),
            or_none(self.lines.map(|lines| lines.to_string())),
            u8::from(self.follow).to_string(),
        ]
    }

    fn parse(words: impl Iterator<Item = OsString>) -> Option<Self> {
        let words: Option<Vec<String>> = words.map(|word| word.into_string().ok()).collect();
        let words = words?;
        let [names, value_max, since, until, boot, lines, follow] = words.as_slice() else {
            return None;
        };
        let known = |word: &String| (word != "-").then(|| word.clone());
        Some(Self {
            wanted: Wanted {
                names: known(names).map(|names| names.split(',').map(str::to_owned).collect()),
                value_max: value_max.parse().ok()?,
            },
            since: since.parse().ok()?,
            until: until.parse().ok()?,
            boot: known(boot)
                .map(|boot| u128::from_str_radix(&boot, 16))
                .transpose()
                .ok()?,
            lines: known(lines).map(|lines| lines.parse()).transpose().ok()?,
            follow: follow == "1",
        })
    }

    fn takes(&self, stamp: &Stamp) -> bool {
        (self.since..=self.until).contains(&stamp.realtime) && self.boot.is_none_or(|boot| boot == stamp.boot)
    }
}

/// Does the reader's work. To be called before there is any other thread.
#[must_use]
pub fn reader_main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let done = confine()
        .and_then(|()| Order::parse(words).ok_or_else(|| io::ErrorKind::InvalidInput.into()))
        .and_then(|order| Reader::new(order).run());
    if done.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Gives up everything but what is open: standard input is a socket on which files come, standard output a pipe.
fn confine() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let limit = |resource, value| {
        setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )
    };
    limit(Resource::Data, MEMORY)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nproc, 0)?;
    limit(Resource::Nofile, FILES_MAX as u64 + 64)?;
    if nix::unistd::geteuid().is_root() {
        rustix::process::chroot("/proc/self/fdinfo").map_err(io::Error::from)?;
        rustix::process::chdir("/")?;
        nix::unistd::setgroups(&[])?;
        let (uid, gid) = (NOBODY.into(), NOBODY.into());
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        // Forgotten by the change of user.
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    match allow_reading_only() {
        // There is no such filter for this processor yet: all the rest holds.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

struct Source {
    name: Vec<u8>,
    file: JournalFile,
    head: Option<Stamp>,
    noted: bool,
}

struct Reader {
    order: Order,
    files: Vec<Source>,
    out: Vec<u8>,
    told: Vec<Identity>,
}

impl Reader {
    fn new(order: Order) -> Self {
        Self {
            order,
            files: Vec::new(),
            out: Vec::with_capacity(2 * CHUNK),
            told: vec![Identity::default(); REMEMBERED],
        }
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            match self.receive(true)? {
                None => return Ok(()),
                Some(START) => break,
                Some(_) => {}
            }
        }
        self.begin()?;
        self.merge()?;
        write_field(&mut self.out, CAUGHT_UP.as_bytes(), b"1");
        self.out.push(b'\n');
        self.flush()?;
        while self.order.follow {
            self.files.retain(|source| !source.file.is_done());
            let mut ended = self.receive(true)?.is_none();
            // One look for all that is waiting.
            while !ended {
                match self.receive(false) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    word => ended = word?.is_none(),
                }
            }
            for at in 0..self.files.len() {
                if let Err(damage) = self.files[at].file.refresh() {
                    self.complain(at, &damage);
                }
            }
            self.merge()?;
            self.flush()?;
            if ended {
                break;
            }
        }
        Ok(())
    }

    /// Takes one packet: what it is, or `None` at the end.
    fn receive(&mut self, wait: bool) -> io::Result<Option<u8>> {
        let mut bytes = [0; PACKET_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let wait = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        let flags = RecvFlags::CMSG_CLOEXEC | wait;
        let message = loop {
            match recvmsg(
                rustix::stdio::stdin(),
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                flags,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut files = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let file = files.next();
        drop(files);
        let Some((kind, name)) = bytes[..message.bytes].split_first() else {
            return Ok(None);
        };
        if let Some(file) = file {
            self.add(name.to_vec(), file);
        }
        Ok(Some(*kind))
    }

    fn add(&mut self, name: Vec<u8>, file: OwnedFd) {
        if self.files.len() >= FILES_MAX {
            // It has been read as far as it went.
            self.files.remove(0);
        }
        match JournalFile::open(File::from(file)) {
            Ok(file) => self.files.push(Source {
                name,
                file,
                head: None,
                noted: false,
            }),
            Err(damage) => self.note(&name, &damage),
        }
    }

    /// Goes to where the last entries of each file begin, if only so many are wanted.
    fn begin(&mut self) -> io::Result<()> {
        let Some(lines) = self.order.lines else { return Ok(()) };
        for at in 0..self.files.len() {
            if let Err(damage) = last_entries(&mut self.files[at].file, lines, &self.order) {
                self.complain(at, &damage);
            }
        }
        self.flush()
    }

    /// Tells what is there, in the order of time.
    fn merge(&mut self) -> io::Result<()> {
        let mut heap: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        let count = self.files.len();
        self.files.iter_mut().for_each(|source| source.file.share(count));
        for (at, source) in self.files.iter().enumerate() {
            // A file is not read before its time has come.
            heap.push(Reverse((
                source.head.map_or(source.file.begins, |head| head.realtime),
                at,
            )));
        }
        while let Some(Reverse((_, at))) = heap.pop() {
            if let Some(stamp) = self.files[at].head.take() {
                self.tell(at, &stamp)?;
            }
            match self.advance(at) {
                Ok(Some(stamp)) => heap.push(Reverse((stamp.realtime, at))),
                Ok(None) => self.files[at].file.rest(),
                Err(damage) => self.complain(at, &damage),
            }
        }
        Ok(())
    }

    /// Finds the next entry of a file that is wanted.
    fn advance(&mut self, at: usize) -> Result<Option<Stamp>, Damage> {
        let source = &mut self.files[at];
        if source.file.is_before(self.order.since) {
            return Ok(None);
        }
        while let Some(stamp) = source.file.next()? {
            if self.order.takes(&stamp) {
                source.head = Some(stamp);
                return Ok(source.head);
            }
        }
        Ok(None)
    }

    fn tell(&mut self, at: usize, stamp: &Stamp) -> io::Result<()> {
        if self.was_told(stamp.identity()) {
            return Ok(());
        }
        let begun = self.out.len();
        if let Err(damage) = self.files[at].file.write(stamp, &self.order.wanted, &mut self.out) {
            // Half an entry is none; those after it may be whole.
            self.out.truncate(begun);
            self.note_once(at, &damage);
        }
        if self.out.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Whether another file had it too, and remembers it. It may be forgotten again for one that hashes alike: copies of an
    /// entry come close to each other, and nothing worse happens than that it is told twice.
    fn was_told(&mut self, identity: Identity) -> bool {
        let (_, monotonic, realtime, hash) = identity;
        let place = usize::try_from(hash ^ monotonic ^ realtime).unwrap_or(0) % REMEMBERED;
        std::mem::replace(&mut self.told[place], identity) == identity
    }

    /// Says why no more is read of a file, and puts it aside.
    fn complain(&mut self, at: usize, damage: &Damage) {
        self.files[at].file.give_up();
        self.note_once(at, damage);
    }

    fn note_once(&mut self, at: usize, damage: &Damage) {
        let source = &mut self.files[at];
        if !std::mem::replace(&mut source.noted, true) {
            let name = source.name.clone();
            self.note(&name, damage);
        }
    }

    fn note(&mut self, name: &[u8], damage: &Damage) {
        let note = format!("{}: {damage}", String::from_utf8_lossy(name));
        write_field(&mut self.out, NOTE.as_bytes(), note.as_bytes());
        self.out.push(b'\n');
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut left = self.out.as_slice();
        while !left.is_empty() {
            match rustix::io::write(rustix::stdio::stdout(), left) {
                Err(rustix::io::Errno::INTR) => {}
                written => left = &left[written?..],
            }
        }
        self.out.clear();
        self.out.shrink_to(2 * CHUNK);
        Ok(())
    }
}

/// Leaves out entries, so that at least the last `count` of those that are wanted come.
fn last_entries(file: &mut JournalFile, count: u64, order: &Order) -> Result<(), Damage> {
    if order.until == u64::MAX && order.boot.is_none() {
        return file.skip_to_last(count);
    }
    let mut last: VecDeque<Position> = VecDeque::new();
    loop {
        let here = file.position();
        let Some(stamp) = file.next()? else { break };
        if order.takes(&stamp) {
            last.push_back(here);
        }
        if last.len() as u64 > count {
            last.pop_front();
        }
    }
    if let Some(first) = last.front() {
        file.go_to(*first);
    }
    Ok(())
}
