//! A file of systemd-journald, read without trust: see "Journal File Format" in systemd.io.
//!
//! All that the file says is checked against its size before it is believed, and nothing is mapped into memory: it may be
//! cut off while it is read. Entries and the arrays that list them only ever come later in the file than the ones before:
//! so that reading ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::compressed::decompressed;
use super::entry::{CURSOR, ENTRY_MAX, FIELDS_MAX, TIME, is_name, write_field};
use super::values::{SMALL, Values};

/// How many bytes are read at once.
const BLOCK: u64 = 32 << 10;
/// How many blocks of a file are kept: at most, at least, and of all files together.
const BLOCKS: (usize, usize, usize) = (24, 4, 512);
/// How many values are kept, likewise.
const VALUES: (usize, usize, usize) = (8192, 128, 64 << 10);
/// The smallest header that a file of systemd can have.
const HEADER: usize = 208;

/// The flags of a header that a reader has to understand: the compressions, keyed hashes, and the compact form.
const KNOWN: u32 = 0b1_1111;
const COMPACT: u32 = 1 << 4;

/// The flags of an object that say how it is compressed.
const COMPRESSED: u8 = 0b111;

const DATA: u8 = 1;
const ENTRY: u8 = 3;
const ENTRY_ARRAY: u8 = 6;

/// Why a file cannot be read, or not any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error("it is no journal")]
    NoJournal,
    #[error("it is of a newer systemd (flags {0:#x})")]
    Newer(u32),
    #[error("it is damaged at byte {0}")]
    Damaged(u64),
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
}

/// What fields are wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Their names; all if `None`.
    pub(super) names: Option<Vec<String>>,
    /// The longest value.
    pub(super) value_max: usize,
}

impl Wanted {
    fn has(&self, name: &[u8]) -> bool {
        let named = |names: &Vec<String>| names.iter().any(|wanted| wanted.as_bytes() == name);
        is_name(name) && name != b"_BOOT_ID" && self.names.as_ref().is_none_or(named)
    }

    /// Whether a field that begins so may be among them.
    fn may_have(&self, bytes: &[u8]) -> bool {
        let name = bytes.iter().position(|byte| *byte == b'=').map(|at| &bytes[..at]);
        name.is_none_or(|name| self.has(name))
    }
}

/// What every entry says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) realtime: u64,
    pub(super) boot: u128,
    seqnum: u64,
    monotonic: u64,
    hash: u64,
    offset: u64,
    size: u64,
}

impl Stamp {
    /// What distinguishes it from all others, also where two files have it, as when journald moves what it has from /run
    /// to /var.
    pub(super) fn identity(&self) -> Identity {
        (self.boot, self.monotonic, self.realtime, self.hash)
    }
}

/// What distinguishes an entry: see [`Stamp::identity`].
pub(super) type Identity = (u128, u64, u64, u64);

/// A place between two entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    array: u64,
    capacity: u64,
    index: u64,
    seen: u64,
    last: u64,
}

/// A journal file that is read from its first entry to its last, and on, as it grows.
pub(super) struct JournalFile {
    file: File,
    blocks: Vec<(u64, Vec<u8>)>,
    values: Values,
    length: u64,
    compact: bool,
    seqnum_id: u128,
    first_array: u64,
    entries: u64,
    archived: bool,
    given_up: bool,
    /// What its first entry says, by the header: so that a file need not be read before its time has come.
    pub(super) begins: u64,
    /// And its last.
    ends: u64,
    position: Position,
    /// Where the data of an entry is, while it is written.
    items: Vec<u8>,
}

impl JournalFile {
    pub(super) fn open(file: File) -> Result<Self, Damage> {
        let mut this = Self {
            file,
            blocks: vec![(u64::MAX, Vec::new()); BLOCKS.1],
            values: Values::default(),
            length: 0,
            compact: false,
            seqnum_id: 0,
            first_array: 0,
            entries: 0,
            archived: false,
            given_up: false,
            begins: 0,
            ends: 0,
            position: Position::default(),
            items: Vec::new(),
        };
        this.refresh()?;
        Ok(this)
    }

    /// Looks again: how large it is, and how many entries it has.
    pub(super) fn refresh(&mut self) -> Result<(), Damage> {
        if self.given_up {
            return Ok(());
        }
        self.forget_blocks();
        self.length = rustix::fs::fstat(&self.file)
            .map_err(io::Error::from)?
            .st_size
            .try_into()
            .unwrap_or(0);
        let mut header = [0; HEADER];
        if self.length == 0 {
            // systemd-journald has made it, and not written its header yet.
            return Ok(());
        }
        if self.length < HEADER as u64 {
            return Err(Damage::NoJournal);
        }
        self.file.read_exact_at(&mut header, 0)?;
        if header[..8] != *b"LPKSHHRH" {
            return Err(Damage::NoJournal);
        }
        let flags = number32(&header, 12);
        if flags & !KNOWN != 0 {
            return Err(Damage::Newer(flags));
        }
        self.compact = flags & COMPACT != 0;
        self.archived = header[16] == 2;
        self.seqnum_id = id(&header, 72);
        self.entries = number(&header, 152);
        self.first_array = number(&header, 176);
        self.begins = number(&header, 184);
        self.ends = number(&header, 192);
        Ok(())
    }

    /// Whether nothing will ever be added: it was put aside, and all of it has been read.
    pub(super) fn is_done(&self) -> bool {
        self.given_up || self.archived && self.position.seen >= self.entries
    }

    /// How many files there are, which share the memory.
    pub(super) fn share(&mut self, files: usize) {
        let part = |(most, least, all): (usize, usize, usize)| (all / files.max(1)).clamp(least, most);
        self.values.share(part(VALUES));
        self.blocks.resize(part(BLOCKS), (u64::MAX, Vec::new()));
    }

    /// Has nothing more to say.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.rest();
    }

    /// Frees what is only needed while entries are read.
    pub(super) fn rest(&mut self) {
        self.values.forget();
        self.forget_blocks();
    }

    fn forget_blocks(&mut self) {
        for block in &mut self.blocks {
            *block = (u64::MAX, Vec::new());
        }
    }

    /// Where the next entry is.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Goes where it was before.
    pub(super) fn go_to(&mut self, position: Position) {
        self.position = position;
    }

    /// Whether the header says that all of it, and all that will ever be in it, is older.
    pub(super) fn is_before(&self, time: u64) -> bool {
        self.archived && self.ends < time
    }

    /// Leaves out entries, so that at most the last `count` come.
    pub(super) fn skip_to_last(&mut self, count: u64) -> Result<(), Damage> {
        let mut left = self.entries.saturating_sub(count).saturating_sub(self.position.seen);
        while left > 0 {
            if self.position.index >= self.position.capacity && !self.next_array()? {
                return Ok(());
            }
            let at = &mut self.position;
            let step = left.min(at.capacity - at.index);
            (at.index, at.seen, left) = (at.index + step, at.seen + step, left - step);
        }
        Ok(())
    }

    /// What the next entry says of itself; `None` if there is none yet.
    pub(super) fn next(&mut self) -> Result<Option<Stamp>, Damage> {
        let Some(offset) = self.next_offset()? else {
            return Ok(None);
        };
        let mut bytes = [0; 64];
        let size = self.object(offset, ENTRY, 64)?;
        self.read(offset, &mut bytes)?;
        Ok(Some(Stamp {
            seqnum: number(&bytes, 16),
            realtime: number(&bytes, 24),
            monotonic: number(&bytes, 32),
            boot: id(&bytes, 40),
            hash: number(&bytes, 56),
            offset,
            size,
        }))
    }

    fn next_offset(&mut self) -> Result<Option<u64>, Damage> {
        if self.given_up || self.position.seen >= self.entries {
            return Ok(None);
        }
        while self.position.index >= self.position.capacity {
            if !self.next_array()? {
                return Ok(None);
            }
        }
        let mut at = self.position;
        let mut bytes = [0; 8];
        let item = self.item();
        let place = at.array + 24 + at.index * item;
        self.read(place, &mut bytes[..if self.compact { 4 } else { 8 }])?;
        let offset = u64::from_le_bytes(bytes);
        if offset == 0 {
            // The rest of the array is for entries to come.
            return Ok(None);
        }
        if offset <= at.last {
            return Err(Damage::Damaged(place));
        }
        (at.index, at.seen, at.last) = (at.index + 1, at.seen + 1, offset);
        self.position = at;
        Ok(Some(offset))
    }

    /// Goes to the next array of entries; false if there is none yet.
    fn next_array(&mut self) -> Result<bool, Damage> {
        let here = self.position.array;
        let next = if here == 0 {
            self.first_array
        } else {
            let mut bytes = [0; 8];
            self.read(here + 16, &mut bytes)?;
            u64::from_le_bytes(bytes)
        };
        if next == 0 {
            return Ok(false);
        }
        if next <= here {
            return Err(Damage::Damaged(here));
        }
        let size = self.object(next, ENTRY_ARRAY, 24)?;
        let at = &mut self.position;
        (at.array, at.index, at.capacity) = (next, 0, (size - 24) / if self.compact { 4 } else { 8 });
        Ok(true)
    }

    fn item(&self) -> u64 {
        if self.compact { 4 } else { 8 }
    }

    /// The size of the object there, which is of this kind and has at least so many bytes, all of them in the file.
    fn object(&mut self, offset: u64, kind: u8, least: u64) -> Result<u64, Damage> {
        let mut bytes = [0; 16];
        if !offset.is_multiple_of(8) {
            return Err(Damage::Damaged(offset));
        }
        self.read(offset, &mut bytes)?;
        self.is_object(offset, &bytes, kind, least)
    }

    /// The same, of the head that was read.
    fn is_object(&self, offset: u64, head: &[u8], kind: u8, least: u64) -> Result<u64, Damage> {
        let size = number(head, 8);
        let ends = offset.checked_add(size).filter(|end| *end <= self.length);
        if head[0] != kind || size < least || ends.is_none() {
            return Err(Damage::Damaged(offset));
        }
        Ok(size)
    }

    /// Reads by way of the blocks that are kept.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Damage> {
        let end = offset.checked_add(into.len() as u64).filter(|end| *end <= self.length);
        let end = end.ok_or(Damage::Damaged(offset))?;
        if offset / BLOCK != end.saturating_sub(1) / BLOCK {
            return Ok(self.file.read_exact_at(into, offset)?);
        }
        let number = offset / BLOCK;
        let count = self.blocks.len();
        let block = &mut self.blocks[usize::try_from(number).unwrap_or(0) % count];
        let within = usize::try_from(offset % BLOCK).unwrap_or(0);
        if block.0 != number || block.1.len() < within + into.len() {
            block.0 = u64::MAX;
            let whole = BLOCK.min(self.length - number * BLOCK);
            block.1.resize(usize::try_from(whole).unwrap_or(0), 0);
            self.file.read_exact_at(&mut block.1, number * BLOCK)?;
            block.0 = number;
        }
        into.copy_from_slice(&block.1[within..within + into.len()]);
        Ok(())
    }

    /// Appends an entry in the export format.
    pub(super) fn write(&mut self, stamp: &Stamp, wanted: &Wanted, out: &mut Vec<u8>) -> Result<(), Damage> {
        if wanted.names.is_none() {
            let cursor = format!(
                "s={:032x};i={:x};b={:032x};m={:x};t={:x};x={:x}",
                self.seqnum_id, stamp.seqnum, stamp.boot, stamp.monotonic, stamp.realtime, stamp.hash
            );
            write_field(out, CURSOR.as_bytes(), cursor.as_bytes());
        }
        write_field(out, TIME.as_bytes(), stamp.realtime.to_string().as_bytes());
        if wanted.names.is_none() {
            write_field(out, b"__MONOTONIC_TIMESTAMP", stamp.monotonic.to_string().as_bytes());
            write_field(out, b"_BOOT_ID", format!("{:032x}", stamp.boot).as_bytes());
        }
        let size = if self.compact { 4 } else { 16 };
        let listed = usize::try_from(stamp.size - 64).map_err(|_| Damage::Damaged(stamp.offset))?;
        let mut items = std::mem::take(&mut self.items);
        items.resize((listed / size).min(FIELDS_MAX) * size, 0);
        let read = self.read(stamp.offset + 64, &mut items);
        let begun = out.len();
        let written = read.and_then(|()| {
            items.chunks_exact(size).try_for_each(|item| {
                let mut bytes = [0; 8];
                let used = item.len().min(8);
                bytes[..used].copy_from_slice(&item[..used]);
                if out.len() - begun > ENTRY_MAX {
                    return Ok(());
                }
                self.write_value(u64::from_le_bytes(bytes), wanted, out)
            })
        });
        self.items = items;
        written?;
        out.push(b'\n');
        Ok(())
    }

    fn write_value(&mut self, offset: u64, wanted: &Wanted, out: &mut Vec<u8>) -> Result<(), Damage> {
        if let Some(known) = self.values.get(offset) {
            out.extend_from_slice(known);
            return Ok(());
        }
        let begun = out.len();
        self.write_data(offset, wanted, out)?;
        self.values.keep(offset, &out[begun..]);
        Ok(())
    }

    /// Appends the field of the data there, if somebody wants it.
    fn write_data(&mut self, offset: u64, wanted: &Wanted, out: &mut Vec<u8>) -> Result<(), Damage> {
        let begin = if self.compact { 72 } else { 64 };
        // Most are small: read with their head, and thrown away if that was no data.
        let mut head = [0; SMALL];
        let there = self.length.saturating_sub(offset).min(SMALL as u64);
        let head = &mut head[..usize::try_from(there).unwrap_or(0)];
        if !offset.is_multiple_of(8) || head.len() < 16 {
            return Err(Damage::Damaged(offset));
        }
        self.read(offset, head)?;
        let size = self.is_object(offset, head, DATA, begin)? - begin;
        let flags = head[1] & COMPRESSED;
        let limit = wanted.value_max + super::entry::NAME_MAX + 1;
        let stored = usize::try_from(size).map_err(|_| Damage::Damaged(offset))?;
        let begin_here = usize::try_from(begin).unwrap_or(0);
        let large;
        let bytes = if flags != 0 {
            // What is compressed to more than it may become is not worth a look.
            if stored > 4 * limit {
                return Ok(());
            }
            let mut bytes = vec![0; stored];
            self.read(offset + begin, &mut bytes)?;
            large = decompressed(flags, &bytes, limit).ok_or(Damage::Damaged(offset))?;
            large.as_slice()
        } else if let Some(bytes) = head.get(begin_here..begin_here + stored) {
            bytes
        } else if !wanted.may_have(&head[begin_here..]) {
            return Ok(());
        } else {
            let mut bytes = vec![0; stored.min(limit)];
            self.read(offset + begin, &mut bytes)?;
            large = bytes;
            large.as_slice()
        };
        let Some(at) = bytes.iter().take(limit).position(|byte| *byte == b'=') else {
            return Ok(());
        };
        let (name, value) = (&bytes[..at], &bytes[at + 1..]);
        if wanted.has(name) {
            write_field(out, name, &value[..value.len().min(wanted.value_max)]);
        }
        Ok(())
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

/// As systemd shows it.
fn id(bytes: &[u8], at: usize) -> u128 {
    u128::from_be_bytes(std::array::from_fn(|place| bytes[at + place]))
}
