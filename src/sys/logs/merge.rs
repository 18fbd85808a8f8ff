//! Many sources in the order of time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Entry, From, Item, Past};

/// How long a source may say nothing before the rest is told without it: a machine can have its files answer never.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an entry waits for older ones: journald tells of changes a quarter of a second late.
const HOLD: Duration = Duration::from_millis(400);
/// How many bytes of entries wait at most.
const HELD_MAX: usize = 4 << 20;
/// How many bytes of entries are kept of which only the last are wanted.
const LAST_MAX: usize = 256 << 20;

/// What is told, by number of machine.
#[derive(Debug)]
pub enum Told<'a> {
    /// An entry.
    Entry(From, &'a Entry),
    /// Why something is missing.
    Note(&'a str),
    /// What became of the machine.
    News(&'a str),
    /// Nothing for now: what was told may be shown.
    Pause,
    /// Nobody reads our output any more.
    Closed,
}

/// Sources to be merged: see [`super::Sources`].
#[derive(Debug)]
pub struct Merge {
    lines: Option<usize>,
    past: Vec<Source>,
    live: Receiver<(usize, Item)>,
}

#[derive(Debug)]
struct Source {
    machine: usize,
    items: Option<Receiver<Item>>,
    waiting: VecDeque<(From, Entry)>,
}

impl Merge {
    pub(super) fn new(lines: Option<usize>, live: Receiver<(usize, Item)>) -> Self {
        Self {
            lines,
            past: Vec::new(),
            live,
        }
    }

    pub(super) fn add(&mut self, (machine, items): Past) {
        self.past.push(Source {
            machine,
            items: Some(items),
            waiting: VecDeque::new(),
        });
    }

    /// Tells what is there, oldest first; stops at the first error. Blocks.
    pub fn tell_past<E>(&mut self, mut tell: impl FnMut(usize, Told<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut last = Last::default();
        loop {
            for source in &mut self.past {
                source.fill(&mut tell)?;
            }
            let oldest = self.past.iter_mut().filter(|source| !source.waiting.is_empty());
            let Some(source) = oldest.min_by_key(|source| source.waiting[0].1.time) else {
                break;
            };
            let Some((from, entry)) = source.waiting.pop_front() else {
                break;
            };
            match self.lines {
                None => tell(source.machine, Told::Entry(from, &entry))?,
                Some(lines) => last.push(source.machine, from, entry, lines),
            }
        }
        self.past.clear();
        if last.lost {
            tell(
                0,
                Told::Note("some of the last entries are left out: they are too long"),
            )?;
        }
        for (machine, from, entry) in last.entries {
            tell(machine, Told::Entry(from, &entry))?;
        }
        tell(0, Told::Pause)
    }

    /// Tells what comes, for as long as anything can; entries that come at about the same time in their order.
    pub fn tell_live<E>(&mut self, mut tell: impl FnMut(usize, Told<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut held: BTreeMap<(u64, u64), (Instant, usize, From, Entry)> = BTreeMap::new();
        let (mut bytes, mut number) = (0, 0_u64);
        loop {
            let now = Instant::now();
            while let Some(first) = held.first_entry() {
                if first.get().0 > now && bytes <= HELD_MAX {
                    break;
                }
                let (_, machine, from, entry) = first.remove();
                bytes -= entry.size();
                tell(machine, Told::Entry(from, &entry))?;
            }
            let wait = match held.first_key_value() {
                Some((_, first)) => first.0.saturating_duration_since(now),
                None => {
                    tell(0, Told::Pause)?;
                    Duration::from_secs(3600)
                }
            };
            match self.live.recv_timeout(wait) {
                Ok((machine, Item::Entries(entries))) => {
                    let until = Instant::now() + HOLD;
                    for (from, entry) in entries {
                        bytes += entry.size();
                        number += 1;
                        held.insert((entry.time, number), (until, machine, from, entry));
                    }
                }
                Ok((machine, Item::Note(text))) => tell(machine, Told::Note(&text))?,
                Ok((machine, Item::News(text))) => tell(machine, Told::News(&text))?,
                Err(RecvTimeoutError::Timeout) => {}
                Ok((_, Item::Closed)) => tell(0, Told::Closed)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

impl Source {
    /// Waits for the source's next entries, if none are waiting.
    fn fill<E>(&mut self, tell: &mut impl FnMut(usize, Told<'_>) -> Result<(), E>) -> Result<(), E> {
        while let (Some(items), true) = (&self.items, self.waiting.is_empty()) {
            match items.recv_timeout(PATIENCE) {
                Ok(Item::Entries(entries)) => self.waiting = entries.into(),
                Ok(Item::Note(text)) => tell(self.machine, Told::Note(&text))?,
                Ok(Item::News(text)) => tell(self.machine, Told::News(&text))?,
                Ok(Item::Closed) | Err(RecvTimeoutError::Disconnected) => self.items = None,
                Err(RecvTimeoutError::Timeout) => {
                    self.items = None;
                    tell(
                        self.machine,
                        Told::Note("one of its journals does not answer, and is left out"),
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// The last entries.
#[derive(Default)]
struct Last {
    entries: VecDeque<(usize, From, Entry)>,
    bytes: usize,
    lost: bool,
}

impl Last {
    fn push(&mut self, machine: usize, from: From, entry: Entry, lines: usize) {
        self.bytes += entry.size();
        self.entries.push_back((machine, from, entry));
        while self.entries.len() > lines || self.bytes > LAST_MAX {
            self.lost |= self.entries.len() <= lines;
            if let Some((.., entry)) = self.entries.pop_front() {
                self.bytes -= entry.size();
            }
        }
    }
}
