//! What machines have to say: the entries of their units in the host's journal, which journalctl(1) reads, and those of the
//! guests' own journals.
//!
//! A guest's journal is read by a [`reader`] without privilege. journalctl itself could be given no more than one open file,
//! and not follow that; by paths it would need the right to read what belongs to any user of the guest. Each source has a
//! thread of its own and a channel with room for little: who is not heard waits, and memory stays what it is.

mod compressed;
mod entry;
mod file;
mod guest;
mod host;
mod merge;
mod reader;
mod runs;
mod values;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

pub use entry::{CURSOR, Entry, TIME};
pub use guest::Guest;
pub use host::Unit;
pub use merge::{Merge, Told};
pub use reader::{JOB as READER, reader_main};
pub use runs::{Run, boot_began, invocation_began, of_unit as runs_of, sync, when};

use self::file::Wanted;
use self::reader::Order;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// systemd and systemd-nspawn, about the unit.
    Supervisor,
    /// What the machine writes to its console, which systemd-nspawn passes on.
    Console,
    /// The machine's own journal.
    Guest,
}

/// What of it is wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// µs since 1970, included.
    pub since: Option<u64>,
    /// µs since 1970, included.
    pub until: Option<u64>,
    /// Nothing up to this cursor, in place of a time; only for the host's journal.
    pub after: Option<String>,
    /// Only the last so many entries of what is there.
    pub lines: Option<usize>,
    /// What comes later, too.
    pub follow: bool,
    /// Only these fields; all if `None`.
    pub fields: Option<Vec<String>>,
}

/// Longer values are cut: where only some fields are wanted, a person reads them.
const SHOWN_MAX: usize = 64 << 10;

impl Query {
    fn order(&self) -> Order {
        Order {
            wanted: Wanted {
                names: self.fields.clone(),
                value_max: if self.fields.is_some() {
                    SHOWN_MAX
                } else {
                    entry::VALUE_MAX
                },
            },
            since: self.since.unwrap_or(0),
            until: self.until.unwrap_or(u64::MAX),
            boot: None,
            lines: self.lines.map(|lines| lines as u64),
            follow: self.follow,
        }
    }
}

/// Whoever listened has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// What a source says.
#[derive(Debug)]
pub(crate) enum Item {
    Entries(Vec<(From, Entry)>),
    /// For people: why something is missing.
    Note(String),
    /// For people: what became of the machine.
    News(String),
    /// Nobody reads our output any more.
    Closed,
}

/// Entries on their way.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    entries: Vec<(From, Entry)>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, from: From, entry: Entry) {
        self.bytes += entry.size();
        self.entries.push((from, entry));
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= 256 || self.bytes >= 512 << 10
    }
}

/// Where a source tells what it has: first what is there, then what comes.
#[derive(Debug)]
pub(crate) struct Sink {
    machine: usize,
    past: Option<SyncSender<Item>>,
    live: SyncSender<(usize, Item)>,
}

impl Sink {
    fn send(&mut self, item: Item) -> Result<(), Gone> {
        match &self.past {
            Some(past) => past.send(item).map_err(|_| Gone),
            None => self.live.send((self.machine, item)).map_err(|_| Gone),
        }
    }

    fn send_batch(&mut self, batch: &mut Batch) -> Result<(), Gone> {
        batch.bytes = 0;
        match std::mem::take(&mut batch.entries) {
            entries if entries.is_empty() => Ok(()),
            entries => self.send(Item::Entries(entries)),
        }
    }

    fn note(&mut self, text: &str) -> Result<(), Gone> {
        self.send(Item::Note(text.to_owned()))
    }

    /// All that was there has been told.
    fn caught_up(&mut self) {
        self.past = None;
    }
}

/// Starts the threads of sources.
#[derive(Clone, Debug)]
pub struct Sources {
    live: SyncSender<(usize, Item)>,
}

/// What one source has that was there before: see [`Merge`].
pub(crate) type Past = (usize, Receiver<Item>);

impl Sources {
    /// Sources, and where they are heard: of what is there only the last so many entries, or all.
    #[must_use]
    pub fn new(lines: Option<usize>) -> (Self, Merge) {
        let (live, heard) = sync_channel(2);
        (Self { live }, Merge::new(lines, heard))
    }

    fn sink(&self, merge: &mut Merge, machine: usize) -> Sink {
        let (past, heard) = sync_channel(2);
        merge.add((machine, heard));
        let (past, live) = (Some(past), self.live.clone());
        Sink { machine, past, live }
    }

    fn live_sink(&self, machine: usize) -> Sink {
        let live = self.live.clone();
        Sink {
            machine,
            past: None,
            live,
        }
    }

    /// A unit in the host's journal.
    pub fn add_unit(&self, merge: &mut Merge, machine: usize, unit: Unit, query: Query) {
        let sink = self.sink(merge, machine);
        thread::spawn(move || host::tell(&unit, &query, sink));
    }

    /// A guest's journal.
    pub fn add_guest(&self, merge: &mut Merge, machine: usize, guest: Guest, query: &Query) {
        let (sink, order) = (self.sink(merge, machine), query.order());
        thread::spawn(move || guest::tell(&guest, order, sink));
    }

    /// As [`Sources::add_unit`], when the past has been told already.
    pub fn join_unit(&self, machine: usize, unit: Unit, query: Query) {
        let sink = self.live_sink(machine);
        thread::spawn(move || host::tell(&unit, &query, sink));
    }

    /// As [`Sources::add_guest`], when the past has been told already.
    pub fn join_guest(&self, machine: usize, guest: Guest, query: &Query) {
        let (sink, order) = (self.live_sink(machine), query.order());
        thread::spawn(move || guest::tell(&guest, order, sink));
    }

    /// Tells people what became of a machine.
    pub fn tell_news(&self, machine: usize, news: String) {
        let mut sink = self.live_sink(machine);
        thread::spawn(move || sink.send(Item::News(news)));
    }

    /// Has [`Told::Closed`] told.
    pub fn close(&self) {
        let live = self.live.clone();
        thread::spawn(move || live.send((0, Item::Closed)));
    }

    /// Ends it all when nobody reads our standard output any more.
    pub fn watch_output(&self) {
        let live = self.live.clone();
        thread::spawn(move || {
            let stdout = std::io::stdout();
            let mut fds = [rustix::event::PollFd::new(&stdout, rustix::event::PollFlags::empty())];
            while matches!(rustix::event::poll(&mut fds, None), Err(rustix::io::Errno::INTR)) {}
            let _ = live.send((0, Item::Closed));
        });
    }
}
