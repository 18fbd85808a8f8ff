//! cpio archives of the form newc, as the kernel takes them for an initial RAM disk, see cpio(5).
//!
//! The rest is as with tar: the same names, the same checks, the same writers.

use std::collections::{BTreeMap, VecDeque};

use super::blocks::Blocks;
use super::entry::{Attributes, Content, Entry};
use super::{Problem, TarballError};

/// Bytes of a header, which is all in hexadecimal digits.
const HEADER: usize = 110;

/// The longest name or link, in bytes; names have a limit of their own.
const MAX_NAME: u32 = 64 << 10;

/// Bytes of names that are remembered because they share their contents.
const MAX_WAITING: usize = 64 << 20;

/// What marks the end.
const TRAILER: &[u8] = b"TRAILER!!!";

/// What makes two names one file: inode number and device.
type Inode = (u32, u32, u32);

/// Reads an archive entry by entry.
pub(crate) struct Cpio {
    pub(super) blocks: Blocks,
    /// Names of files that have several: in this form the last one has the contents.
    waiting: BTreeMap<Inode, Vec<Entry>>,
    waiting_bytes: usize,
    /// Where such a file was made.
    made: BTreeMap<Inode, Vec<u8>>,
    /// What comes before the next header.
    queue: VecDeque<Entry>,
    ended: bool,
}

/// The fields of a header that matter.
struct Header {
    inode: Inode,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    name: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let field = |number: usize| {
            let digits = bytes.get(6 + 8 * number..14 + 8 * number)?;
            // from_str_radix() would take a sign, too.
            let valid = digits.iter().all(u8::is_ascii_hexdigit);
            let text = std::str::from_utf8(digits).ok().filter(|_| valid)?;
            u32::from_str_radix(text, 16).ok()
        };
        Some(Self {
            inode: (field(0)?, field(7)?, field(8)?),
            mode: field(1)?,
            uid: field(2)?,
            gid: field(3)?,
            links: field(4)?,
            mtime: field(5)?,
            size: field(6)?,
            name: field(11)?,
        })
    }

    fn attributes(&self) -> Attributes {
        Attributes {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: (self.mtime.into(), 0),
            xattrs: Vec::new(),
        }
    }
}

impl Cpio {
    /// Whether these are the first bytes of one, old forms included.
    pub(crate) fn is(first: &[u8]) -> bool {
        first.starts_with(b"07070") || first.starts_with(&[0xc7, 0x71]) || first.starts_with(&[0x71, 0xc7])
    }

    pub(super) fn new(blocks: Blocks) -> Self {
        Self {
            blocks,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            made: BTreeMap::new(),
            queue: VecDeque::new(),
            ended: false,
        }
    }

    /// The next entry, past whatever was not read of the last one; `None` after the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarballError> {
        loop {
            if let Some(entry) = self.queue.pop_front() {
                return Ok(Some(entry));
            }
            if self.ended {
                return Ok(None);
            }
            self.blocks.end_entry()?;
            if let Some(entry) = self.entry()? {
                return Ok(Some(entry));
            }
        }
    }

    /// An entry, unless it has to wait.
    fn entry(&mut self) -> Result<Option<Entry>, TarballError> {
        let mut header = [0; HEADER];
        let at = self.blocks.offset();
        let read = self.blocks.fill(&mut header)?;
        if !header.starts_with(b"07070") && at > 0 && read == HEADER {
            return Err(self.blocks.damaged(at));
        }
        if at == 0 && read > 0 && !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(TarballError::OldCpio {
                archive: self.blocks.archive().to_path_buf(),
            });
        }
        if read < HEADER {
            return Err(self.blocks.truncated(if at == 0 {
                "inside of a header"
            } else {
                "without a trailer"
            }));
        }
        let header = Header::parse(&header).filter(|header| (1..=MAX_NAME).contains(&header.name));
        let header = header.ok_or_else(|| self.blocks.damaged(at))?;
        let mut name = vec![0; header.name as usize];
        self.all(&mut name)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        self.align()?;
        self.blocks.name.clone_from(&name);
        if name == TRAILER {
            self.ended = true;
            self.blocks.only_zeros()?;
            self.end();
            return Ok(None);
        }
        self.blocks.data_follows_in(header.size.into(), 4);
        let bad = |problem| TarballError::entry(&name, problem);
        if header.uid == u32::MAX || header.gid == u32::MAX {
            return Err(bad(Problem::BadField("owner")));
        }
        let content = match header.mode & 0o170_000 {
            0o040_000 => Content::Directory,
            0o120_000 => Content::Symlink(self.link(header.size)?),
            0o010_000 => Content::Fifo,
            0o020_000 | 0o060_000 => Content::Device,
            0o140_000 => Content::Socket,
            0o100_000 | 0 => return self.file(&header, name),
            _ => return Err(bad(Problem::BadField("mode"))),
        };
        Ok(Some(self::entry(name, content, &header)))
    }

    fn file(&mut self, header: &Header, name: Vec<u8>) -> Result<Option<Entry>, TarballError> {
        let file = |name| entry(name, Content::File { sparse: None }, header);
        if header.links > 1 {
            if let Some(made) = self.made.get(&header.inode) {
                return Ok(Some(entry(name, Content::HardLink(made.clone()), header)));
            }
            self.waiting_bytes += name.len() + size_of::<Entry>();
            if self.waiting_bytes > MAX_WAITING {
                return Err(TarballError::entry(&name, Problem::ManyLinks));
            }
            if header.size == 0 {
                self.waiting.entry(header.inode).or_default().push(file(name));
                return Ok(None);
            }
            for mut link in self.waiting.remove(&header.inode).unwrap_or_default() {
                link.content = Content::HardLink(name.clone());
                self.queue.push_back(link);
            }
            self.made.insert(header.inode, name.clone());
        }
        if header.size > 0 {
            self.blocks.pieces = vec![(0, header.size.into())];
        }
        Ok(Some(file(name)))
    }

    /// What waits for contents has none.
    fn end(&mut self) {
        for (_, mut names) in std::mem::take(&mut self.waiting) {
            let first = names[0].name.clone();
            for link in &mut names[1..] {
                link.content = Content::HardLink(first.clone());
            }
            self.queue.extend(names);
        }
    }

    /// The text of a link, which is its data.
    fn link(&mut self, size: u32) -> Result<Vec<u8>, TarballError> {
        if size > MAX_NAME {
            return Err(TarballError::entry(&self.blocks.name, Problem::LongName(size as usize)));
        }
        let mut text = Vec::new();
        if size > 0 {
            self.blocks.pieces = vec![(0, size.into())];
            self.blocks.read_piece(&mut text)?;
        }
        Ok(text)
    }

    fn all(&mut self, bytes: &mut [u8]) -> Result<(), TarballError> {
        if self.blocks.fill(bytes)? < bytes.len() {
            return Err(self.blocks.truncated("inside of a name"));
        }
        Ok(())
    }

    /// Names end at a multiple of four, as data does.
    fn align(&mut self) -> Result<(), TarballError> {
        let at = self.blocks.offset();
        self.blocks.skip(at.next_multiple_of(4) - at)
    }
}

fn entry(name: Vec<u8>, content: Content, header: &Header) -> Entry {
    Entry {
        name,
        content,
        attributes: header.attributes(),
        skipped_xattrs: 0,
        acl_text: false,
    }
}
