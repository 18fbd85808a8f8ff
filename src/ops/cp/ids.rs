//! Whose a copied file is: numbers of users and groups, of ACLs and of file capabilities, from one machine's view to another's.

use rustix::fs::Stat;

/// `CAP_FOWNER` and the like stand in these, see "File capabilities" in capabilities(7).
const CAPABILITY: &[u8] = b"security.capability";
/// `VFS_CAP_REVISION_2` and `VFS_CAP_REVISION_3`, and the size of each.
const REVISION_2: (u32, usize) = (0x0200_0000, 20);
const REVISION_3: (u32, usize) = (0x0300_0000, 24);
const REVISION_MASK: u32 = 0xff00_0000;

/// `POSIX_ACL_XATTR_VERSION`
const ACL_VERSION: u32 = 2;
/// Tags of entries that name a user or a group, see <linux/posix_acl.h>.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Nobody, where a number has no counterpart.
const NOBODY: u32 = 65534;

/// Numbers inside a machine, and what they are to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Map(Vec<(u32, u32, u32)>);

impl Map {
    /// The host's own.
    pub(in crate::ops) fn identity() -> Self {
        Self(vec![(0, 0, u32::MAX)])
    }

    /// Those of a tree that was given to users from `first` on.
    pub(in crate::ops) fn shifted(first: u32) -> Self {
        if first == 0 {
            Self::identity()
        } else {
            Self(vec![(0, first, 1 << 16)])
        }
    }

    /// Reads a map of `user_namespaces(7)`.
    pub(in crate::ops) fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split_whitespace().map(|field| field.parse().ok());
            Some((fields.next()??, fields.next()??, fields.next()??))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// What a number of the machine is to the host.
    pub(in crate::ops) fn outside(&self, inside: u32) -> Option<u32> {
        self.0.iter().find_map(|(from, to, count)| {
            let offset = inside.checked_sub(*from).filter(|offset| offset < count)?;
            to.checked_add(offset)
        })
    }

    /// What a number of the host is to the machine.
    pub(in crate::ops) fn inside(&self, outside: u32) -> Option<u32> {
        self.0.iter().find_map(|(to, from, count)| {
            let offset = outside.checked_sub(*from).filter(|offset| offset < count)?;
            to.checked_add(offset)
        })
    }
}

/// Users and groups of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Ids {
    /// Users.
    pub(in crate::ops) users: Map,
    /// Groups.
    pub(in crate::ops) groups: Map,
}

impl Ids {
    /// The host's.
    pub(in crate::ops) fn host() -> Self {
        Self {
            users: Map::identity(),
            groups: Map::identity(),
        }
    }

    /// Whether there is a root at all: a user namespace need not have one.
    pub(in crate::ops) fn has_root(&self) -> bool {
        self.users.outside(0).is_some() && self.groups.outside(0).is_some()
    }

    /// What root of this side is to the host.
    pub(in crate::ops) fn root(&self) -> (u32, u32) {
        let outside = |map: &Map| map.outside(0).unwrap_or(NOBODY);
        (outside(&self.users), outside(&self.groups))
    }

    /// Whether root of this side may do what it likes with a file of that owner: if the owner is one of its users, see
    /// user_namespaces(7). We may more, and must not where a guest chose the place.
    pub(in crate::ops) fn rules(&self, owner: &Stat) -> bool {
        self.users.inside(owner.st_uid).is_some() && self.groups.inside(owner.st_gid).is_some()
    }
}

/// From whose view to whose.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Translation {
    /// Where it is copied from.
    pub(in crate::ops) from: Ids,
    /// Where it is copied to.
    pub(in crate::ops) to: Ids,
    /// Whether file capabilities go along.
    pub(in crate::ops) capabilities: bool,
}

impl Translation {
    /// The owner that a copy gets; what has no counterpart there is nobody's.
    pub(in crate::ops) fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        let inside = (
            self.from.users.inside(uid).unwrap_or(NOBODY),
            self.from.groups.inside(gid).unwrap_or(NOBODY),
        );
        self.owner_inside(inside.0, inside.1)
    }

    /// The same for numbers as the machine itself sees them.
    pub(in crate::ops) fn owner_inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let to = |map: &Map, id| map.outside(id).or_else(|| map.outside(NOBODY)).unwrap_or(NOBODY);
        (to(&self.to.users, uid), to(&self.to.groups, gid))
    }

    /// The value of an extended attribute in the copy; `None` if it means something to one side only, or is not to go along.
    pub(in crate::ops) fn attribute(&self, name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        match name {
            b"system.posix_acl_access" | b"system.posix_acl_default" => self.acl(value),
            CAPABILITY if self.capabilities => self.capability(value),
            _ if name.starts_with(b"user.") => Some(value.to_vec()),
            _ => None,
        }
    }

    /// An ACL as setxattr(2) takes it; entries of users that are nobody there are left out.
    fn acl(&self, value: &[u8]) -> Option<Vec<u8>> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != ACL_VERSION {
            return None;
        }
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return None;
        }
        let mut copy = version.to_vec();
        for entry in entries {
            let [tag_low, tag_high, perm_low, perm_high, id @ ..] = *entry;
            let id = u32::from_le_bytes(id);
            let there = match u16::from_le_bytes([tag_low, tag_high]) {
                ACL_USER => self.from.users.inside(id).and_then(|id| self.to.users.outside(id)),
                ACL_GROUP => self.from.groups.inside(id).and_then(|id| self.to.groups.outside(id)),
                _ => Some(id),
            };
            if let Some(id) = there {
                copy.extend([tag_low, tag_high, perm_low, perm_high]);
                copy.extend(id.to_le_bytes());
            }
        }
        Some(copy)
    }

    /// Capabilities that hold where the copy's root is root; those of another root stay behind.
    fn capability(&self, value: &[u8]) -> Option<Vec<u8>> {
        let magic = u32::from_le_bytes(*value.first_chunk::<4>()?);
        let flags = magic & !REVISION_MASK;
        let root = match (magic & REVISION_MASK, value.len()) {
            REVISION_2 => 0,
            REVISION_3 => u32::from_le_bytes(*value.last_chunk::<4>()?),
            _ => return None,
        };
        // Without a root in it, it was written where no users are private, or where they are mapped.
        if root != 0 && self.from.users.inside(root) != Some(0) {
            return None;
        }
        let sets = &value[4..REVISION_2.1];
        let root = self.to.root().0;
        let magic = if root == 0 { REVISION_2.0 } else { REVISION_3.0 } | flags;
        let mut copy = [&magic.to_le_bytes()[..], sets].concat();
        if root != 0 {
            copy.extend(root.to_le_bytes());
        }
        Some(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(first: u32) -> Ids {
        Ids {
            users: Map::shifted(first),
            groups: Map::parse(&format!("0 {first} 65536\n")),
        }
    }

    fn into_machine() -> Translation {
        Translation {
            from: Ids::host(),
            to: private(524_288),
            capabilities: true,
        }
    }

    fn out_of_machine() -> Translation {
        Translation {
            from: private(524_288),
            to: Ids::host(),
            capabilities: false,
        }
    }

    #[test]
    fn root_is_root_on_either_side() {
        assert_eq!(into_machine().owner(0, 33), (524_288, 524_321));
        assert_eq!(out_of_machine().owner(524_288, 524_321), (0, 33));
        let between = Translation {
            from: private(524_288),
            to: private(655_360),
            capabilities: true,
        };
        assert_eq!(between.owner(524_288, 525_288), (655_360, 656_360));
    }

    #[test]
    fn who_has_no_counterpart_is_nobody() {
        // The host's own user in a machine's tree is not root of anything.
        assert_eq!(out_of_machine().owner(0, 1000), (NOBODY, NOBODY));
        assert_eq!(into_machine().owner(100_000, 0), (524_288 + NOBODY, 524_288));
    }

    #[test]
    fn acls_name_the_same_users() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[6, 0], &id.to_le_bytes()].concat();
        let acl = |ids: &[(u16, u32)]| {
            let entries: Vec<_> = ids.iter().flat_map(|(tag, id)| entry(*tag, *id)).collect();
            [&2_u32.to_le_bytes()[..], &entries].concat()
        };
        let inside = acl(&[(1, u32::MAX), (2, 1000), (8, 100_000), (8, 5), (0x20, u32::MAX)]);
        let there = acl(&[(1, u32::MAX), (2, 525_288), (8, 524_293), (0x20, u32::MAX)]);
        assert_eq!(
            into_machine().attribute(b"system.posix_acl_access", &inside),
            Some(there)
        );
        assert_eq!(into_machine().attribute(b"system.posix_acl_access", b"xx"), None);
        assert_eq!(
            into_machine().attribute(b"system.posix_acl_default", &inside[..9]),
            None
        );
    }

    #[test]
    fn capabilities_are_of_the_machines_root_only() {
        let sets = [7_u8; 16];
        let plain = [&0x0200_0001_u32.to_le_bytes()[..], &sets].concat();
        let of = |root: u32| [&0x0300_0001_u32.to_le_bytes()[..], &sets, &root.to_le_bytes()].concat();
        assert_eq!(into_machine().attribute(CAPABILITY, &plain), Some(of(524_288)));
        assert_eq!(out_of_machine().attribute(CAPABILITY, &of(524_288)), None);
        let kept = Translation {
            capabilities: true,
            ..out_of_machine()
        };
        assert_eq!(kept.attribute(CAPABILITY, &of(524_288)), Some(plain));
        assert_eq!(kept.attribute(CAPABILITY, &of(1000)), None);
        assert_eq!(kept.attribute(CAPABILITY, b""), None);
    }

    #[test]
    fn what_means_something_to_one_side_stays_there() {
        assert_eq!(into_machine().attribute(b"user.a", b"b"), Some(b"b".to_vec()));
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"security.selinux",
            b"btrfs.compression",
        ] {
            assert_eq!(into_machine().attribute(name, b"x"), None);
        }
    }
}
