//! A tar archive that has a root filesystem, and beside it members that say what machine it is.
//!
//! Whose layout it is the first entries tell; [`Layout`] says what becomes of each. Members are small and kept in memory; of the
//! tree the sum of its bytes in the archive is told, headers included.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;

use super::blocks::Blocks;
use super::entry::{Content, Entry};
use super::error::shortened;
use super::names::split_any;
use super::room::Room;
use super::{Extracted, Part, Problem, Sieve, TarballError, tar, unpack_sifted};
use crate::machine::{Cancel, Report};
use crate::sources::archive::{Contents, Tap};
use crate::sources::sum::Sum;
use crate::sys::files::shown;

/// The largest member in bytes: the settings of a machine.
const MEMBER_MAX: u64 = 1 << 20;
/// More members no machine has, nor larger ones taken together.
const MEMBERS_MAX: usize = 500;
const ALL_MAX: u64 = 8 << 20;
/// How many directories may come before it is known what they are.
const UNDECIDED_MAX: usize = 64;

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is of the tree.
    Tree,
    /// It is kept in memory.
    Member,
    /// It is left out.
    LeftOut,
    /// Nobody has it: an archive of this kind is not to have it.
    Stranger,
}

/// What an archive looks like.
pub trait Layout {
    /// Looks at the first entries by their paths, and whether each is a directory, until it is known what it is: then the part of
    /// the archive that becomes the root. `None` for the path means that there are no more.
    fn decide(&mut self, path: Option<&str>, is_directory: bool) -> Option<Part>;

    /// The part of the archive that becomes the root, where that is known before it is read.
    fn whole(&self) -> Option<Part> {
        None
    }

    /// What becomes of an entry.
    fn fate(&self, path: &str) -> Fate;

    /// Whom the root of the tree belongs to; it comes before all else of the tree, if it comes at all.
    fn root(&mut self, uid: u32, gid: u32);

    /// The owner that an entry gets.
    fn owner(&self, uid: u32, gid: u32) -> (u32, u32);

    /// The value that an extended attribute gets; `None` leaves it out.
    fn attribute(&self, name: &[u8], value: &[u8]) -> Option<Vec<u8>>;

    /// Whether the members that there are will do, and nothing further is to be read.
    fn suffices(&self, _: &[Member]) -> bool {
        false
    }
}

/// A small file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path in the archive, without `./`.
    pub path: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

/// What an archive had.
#[derive(Debug, Default)]
pub struct Bundle {
    /// Its members, in their order.
    pub members: Vec<Member>,
    /// The sum of the tree, and its bytes; `None` if there was none.
    pub tree: Option<(Sum, u64)>,
    /// What was unpacked.
    pub extracted: Extracted,
    /// Entries that were left out.
    pub left_out: u64,
}

/// Reads the archive; the tree goes into `target`, or nowhere if there is none. `name` is for messages.
pub fn read(
    file: File,
    name: &Path,
    target: Option<&Path>,
    layout: &mut dyn Layout,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Bundle, TarballError> {
    let short = shown(name.file_name().unwrap_or(name.as_os_str()));
    let verb = if target.is_some() { "unpacking" } else { "reading" };
    report.phase(&format!("{verb} {short}"));
    let contents = Contents::from_file(file, cancel).map_err(|source| TarballError::Read {
        archive: name.to_path_buf(),
        source,
    })?;
    let (contents, tap) = contents.tapped();
    let part = layout.whole();
    let mut sieve = Sifting {
        layout,
        tap,
        part,
        undecided: Vec::new(),
        stage: Stage::Before,
        seen: HashSet::new(),
        hasher: RandomState::new(),
        kept: 0,
        bundle: Bundle::default(),
    };
    let result = match target {
        Some(target) => Room::new(None, target).and_then(|room| {
            unpack_sifted(
                tar(contents, name),
                name,
                target,
                &mut sieve,
                Some(&room),
                report,
                cancel,
            )
        }),
        None => look(contents, name, &mut sieve, cancel),
    };
    // Whatever a decompressor made of it.
    cancel.check()?;
    sieve.bundle.extracted = result?;
    Ok(sieve.bundle)
}

/// Reads it to its end, or until the layout has enough, and unpacks nothing.
fn look(contents: Contents, name: &Path, sieve: &mut Sifting<'_>, cancel: &Cancel) -> Result<Extracted, TarballError> {
    let (mut blocks, mut sifted) = (Blocks::new(contents, name), Vec::new());
    let mut done = Extracted::default();
    loop {
        cancel.check()?;
        sieve.before(&mut blocks)?;
        let Some(entry) = blocks.next()? else { break };
        sieve.sift(entry, &mut blocks, &mut sifted)?;
        done.entries += sifted.len() as u64;
        sifted.clear();
        if sieve.layout.suffices(&sieve.bundle.members) {
            return Ok(done);
        }
    }
    sieve.end(&mut sifted)?;
    Ok(done)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of the tree has come.
    Before,
    /// It comes.
    Inside,
    /// It has come.
    After,
}

struct Sifting<'a> {
    layout: &'a mut dyn Layout,
    tap: Tap,
    /// Known once it is decided.
    part: Option<Part>,
    undecided: Vec<Entry>,
    stage: Stage,
    /// Names of all that is no directory, by their hashes: names may take more memory than there is.
    seen: HashSet<u64>,
    hasher: RandomState,
    /// Bytes of the members.
    kept: u64,
    bundle: Bundle,
}

impl Sieve for Sifting<'_> {
    fn before(&mut self, blocks: &mut Blocks) -> Result<(), TarballError> {
        blocks.end_entry()?;
        match self.stage {
            Stage::Before => self.tap.reset(),
            Stage::Inside => self.bundle.tree = Some(self.tap.sum()),
            Stage::After => {}
        }
        Ok(())
    }

    fn sift(&mut self, entry: Entry, blocks: &mut Blocks, out: &mut Vec<Entry>) -> Result<(), TarballError> {
        if self.part.is_none() {
            let is_directory = entry.content == Content::Directory;
            let path = path_of(&entry)?;
            self.part = match &path {
                Some(path) => self.layout.decide(Some(&String::from_utf8_lossy(path)), is_directory),
                None => None,
            };
            if self.part.is_none() && is_directory && self.undecided.len() < UNDECIDED_MAX {
                self.undecided.push(entry);
                return Ok(());
            }
            self.decided(blocks, out)?;
        }
        self.take(entry, blocks, out)
    }

    fn end(&mut self, out: &mut Vec<Entry>) -> Result<(), TarballError> {
        if self.part.is_none() {
            self.part = self.layout.decide(None, false);
            for entry in std::mem::take(&mut self.undecided) {
                self.of_tree(entry, out)?;
            }
        }
        Ok(())
    }

    fn leaves_devices(&self) -> bool {
        true
    }
}

/// The checked path of an entry; `None` for the top of the archive.
fn path_of(entry: &Entry) -> Result<Option<Vec<u8>>, TarballError> {
    Ok(split_any(&entry.name)?.map(|split| split.path))
}

impl Sifting<'_> {
    fn decided(&mut self, blocks: &mut Blocks, out: &mut Vec<Entry>) -> Result<(), TarballError> {
        if self.part.is_none() {
            self.part = self.layout.decide(None, false);
        }
        for entry in std::mem::take(&mut self.undecided) {
            self.take(entry, blocks, out)?;
        }
        Ok(())
    }

    fn take(&mut self, entry: Entry, blocks: &mut Blocks, out: &mut Vec<Entry>) -> Result<(), TarballError> {
        let path = path_of(&entry)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&path);
        let fate = self.layout.fate(&text);
        if fate != Fate::Tree && self.stage == Stage::Inside {
            self.stage = Stage::After;
        }
        if entry.content != Content::Directory
            && fate != Fate::LeftOut
            && !self.seen.insert(self.hasher.hash_one(&path))
        {
            return Err(TarballError::entry(&path, Problem::Twice));
        }
        match fate {
            Fate::LeftOut => self.bundle.left_out += 1,
            Fate::Stranger => return Err(TarballError::entry(&path, Problem::Stranger)),
            Fate::Member if entry.content == Content::Directory => {}
            Fate::Member => self.keep(&entry, &path, blocks)?,
            Fate::Tree if self.stage == Stage::After => {
                return Err(TarballError::entry(&path, Problem::ScatteredTree));
            }
            Fate::Tree => {
                self.stage = Stage::Inside;
                self.of_tree(entry, out)?;
            }
        }
        Ok(())
    }

    fn of_tree(&mut self, entry: Entry, out: &mut Vec<Entry>) -> Result<(), TarballError> {
        let Some(mut entry) = self.part.as_ref().map_or(Ok(None), |part| part.take(entry))? else {
            return Ok(());
        };
        let attributes = &mut entry.attributes;
        if entry.content == Content::Directory && split_any(&entry.name)?.is_none() {
            self.layout.root(attributes.uid, attributes.gid);
        }
        (attributes.uid, attributes.gid) = self.layout.owner(attributes.uid, attributes.gid);
        let layout = &*self.layout;
        attributes
            .xattrs
            .retain_mut(|(name, value)| match layout.attribute(name, value) {
                Some(new) => {
                    *value = new;
                    true
                }
                None => false,
            });
        out.push(entry);
        Ok(())
    }

    fn keep(&mut self, entry: &Entry, path: &[u8], blocks: &mut Blocks) -> Result<(), TarballError> {
        let bad = |problem| Err(TarballError::entry(path, problem));
        let Ok(name) = str::from_utf8(path) else {
            return bad(Problem::Stranger);
        };
        if entry.content != (Content::File { sparse: None }) {
            return bad(Problem::NotPlain);
        }
        self.kept += blocks.data;
        if blocks.data > MEMBER_MAX || self.kept > ALL_MAX || self.bundle.members.len() >= MEMBERS_MAX {
            return bad(Problem::HugeMember(blocks.data));
        }
        let mut bytes = Vec::new();
        while blocks.next_piece().is_some() {
            blocks.read_piece(&mut bytes)?;
        }
        let path = name.to_owned();
        self.bundle.members.push(Member { path, bytes });
        Ok(())
    }
}

/// The path of an entry as far as a message needs it.
#[must_use]
pub fn short(path: &str) -> String {
    shown(&shortened(path.as_bytes()))
}
