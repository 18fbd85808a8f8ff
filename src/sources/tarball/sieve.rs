//! What becomes of the entries of an archive, by what it is unpacked for.

use super::blocks::Blocks;
use super::entry::{Attributes, Entry};
use super::{Depth, Part, Room, TarballError};

/// What an archive is unpacked for.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// The root of a machine.
    Machine,
    /// A tree that a guest may change meanwhile.
    Guest(&'a Manner<'a>),
    /// The root of a machine in which there are other layers, with which it shares the room.
    Layer(Depth, &'a Room),
}

/// The value that an extended attribute gets, by its name and value; `None` leaves it out.
pub type Attribute<'a> = dyn Fn(&[u8], &[u8]) -> Option<Vec<u8>> + 'a;

/// What becomes of what an archive says of its entries, where they are not for a machine of its own.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// The owner that an entry gets, by its user's and its group's number.
    pub owner: &'a dyn Fn(u32, u32) -> (u32, u32),
    /// The value that an extended attribute gets, by its name and value; `None` leaves it out.
    pub attribute: &'a Attribute<'a>,
    /// Bits of the mode that are kept.
    pub mode: u32,
}

impl Manner<'_> {
    pub(super) fn apply(&self, attributes: &mut Attributes) {
        (attributes.uid, attributes.gid) = (self.owner)(attributes.uid, attributes.gid);
        attributes.mode &= self.mode;
        attributes
            .xattrs
            .retain_mut(|(name, value)| match (self.attribute)(name, value) {
                Some(new) => {
                    *value = new;
                    true
                }
                None => false,
            });
    }
}

/// Says what becomes of each entry.
pub(super) trait Sieve {
    /// Before the header of an entry is read, or the end.
    fn before(&mut self, _: &mut Blocks) -> Result<(), TarballError> {
        Ok(())
    }

    /// Adds to `out` what is to be unpacked, under the name that it gets; what it keeps itself it reads. Of entries with contents
    /// only the one at hand, and last.
    fn sift(&mut self, entry: Entry, blocks: &mut Blocks, out: &mut Vec<Entry>) -> Result<(), TarballError>;

    /// The same when there is no further entry.
    fn end(&mut self, _: &mut Vec<Entry>) -> Result<(), TarballError> {
        Ok(())
    }

    /// Whether device nodes are left out wherever they are.
    fn leaves_devices(&self) -> bool;

    /// Where a layer of an image lies; `None` for what is none.
    fn depth(&self) -> Option<Depth> {
        None
    }
}

/// A part of an archive.
pub(super) struct Ordinary<'a> {
    pub(super) part: &'a Part,
    pub(super) way: Way<'a>,
}

impl Sieve for Ordinary<'_> {
    fn sift(&mut self, mut entry: Entry, _: &mut Blocks, out: &mut Vec<Entry>) -> Result<(), TarballError> {
        if let Way::Guest(manner) = self.way {
            manner.apply(&mut entry.attributes);
        }
        out.extend(self.part.take(entry)?);
        Ok(())
    }

    fn leaves_devices(&self) -> bool {
        matches!(self.way, Way::Guest(_))
    }

    fn depth(&self) -> Option<Depth> {
        match self.way {
            Way::Layer(depth, _) => Some(depth),
            Way::Machine | Way::Guest(_) => None,
        }
    }
}
