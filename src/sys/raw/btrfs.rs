//! The ioctls of btrfs, see ioctl(2) and linux/btrfs.h, for which neither rustix nor nix has a safe wrapper.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

const MAGIC: u8 = 0x94;

const SUBVOL_CREATE: Opcode = opcode::write::<VolumeArgs>(MAGIC, 14);
const SNAP_DESTROY: Opcode = opcode::write::<VolumeArgs>(MAGIC, 15);
const INO_LOOKUP_USER: Opcode = opcode::read_write::<LookupArgs>(MAGIC, 62);
const SNAP_CREATE_V2: Opcode = opcode::write::<SnapshotArgs>(MAGIC, 23);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(MAGIC, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(MAGIC, 26);
const GET_SUBVOL_ROOTREF: Opcode = opcode::read_write::<RootRefArgs>(MAGIC, 61);

const INO_LOOKUP: Opcode = opcode::read_write::<InodeLookupArgs>(MAGIC, 18);
const QGROUP_ASSIGN: Opcode = opcode::write::<QgroupAssignArgs>(MAGIC, 41);
const QGROUP_CREATE: Opcode = opcode::write::<QgroupCreateArgs>(MAGIC, 42);

// The kernel only reads it: the opcode is wrong, and stays as it is.
const QGROUP_LIMIT: Opcode = opcode::read::<QgroupLimitArgs>(MAGIC, 43);
const QGROUP_LIMIT_MAX_RFER: u64 = 1;

/// `BTRFS_FIRST_FREE_OBJECTID`, the root directory of a subvolume.
const ROOT_INODE: u64 = 256;

const SUBVOL_RDONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct SnapshotArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct RootRefArgs {
    min_treeid: u64,
    /// Tree and directory of each.
    refs: [[u64; 2]; 255],
    count: u8,
    align: [u8; 7],
}

/// `struct btrfs_ioctl_ino_lookup_user_args`.
#[repr(C)]
struct LookupArgs {
    dirid: u64,
    treeid: u64,
    name: [u8; 256],
    path: [u8; 3824],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InodeLookupArgs {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct QgroupAssignArgs {
    assign: u64,
    src: u64,
    dst: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct QgroupCreateArgs {
    create: u64,
    qgroupid: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QgroupLimitArgs {
    qgroupid: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

const _: () = assert!(size_of::<QgroupLimitArgs>() == 48);
const _: () = assert!(size_of::<InodeLookupArgs>() == 4096);
const _: () = assert!(size_of::<VolumeArgs>() == 4096);
const _: () = assert!(size_of::<SnapshotArgs>() == 4096);
const _: () = assert!(size_of::<RootRefArgs>() == 4096);
const _: () = assert!(size_of::<LookupArgs>() == 4096);

/// Makes an empty subvolume `name` in `directory`.
pub(crate) fn subvolume_create(directory: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let args = VolumeArgs {
        fd: 0,
        name: padded(name)?,
    };
    // SAFETY: the kernel reads one btrfs_ioctl_vol_args, whose size is asserted above and whose name ends in a NUL.
    unsafe { ioctl(directory, Setter::<SUBVOL_CREATE, _>::new(args)) }
}

/// Removes the subvolume `name` in `directory` with all its files; `ENOTEMPTY` if it has subvolumes inside.
pub(crate) fn subvolume_destroy(directory: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let args = VolumeArgs {
        fd: 0,
        name: padded(name)?,
    };
    // SAFETY: the kernel reads one btrfs_ioctl_vol_args, whose size is asserted above and whose name ends in a NUL.
    unsafe { ioctl(directory, Setter::<SNAP_DESTROY, _>::new(args)) }
}

/// Makes `name` in `directory` a writable snapshot of the subvolume whose root directory is `source`.
pub(crate) fn snapshot_create(directory: impl AsFd, name: &OsStr, source: BorrowedFd<'_>) -> Result<(), Errno> {
    let args = SnapshotArgs {
        fd: source.as_raw_fd().into(),
        transid: 0,
        flags: 0,
        unused: [0; 4],
        name: padded(name)?,
    };
    // SAFETY: the kernel reads one btrfs_ioctl_vol_args_v2, whose size is asserted above; no flag makes it look at the
    // unused fields; `source` stays open during the call.
    unsafe { ioctl(directory, Setter::<SNAP_CREATE_V2, _>::new(args)) }
}

/// Whether a subvolume is read-only.
pub(crate) fn subvolume_is_read_only(subvolume: impl AsFd) -> Result<bool, Errno> {
    // SAFETY: the kernel writes one u64.
    let flags = unsafe { ioctl(subvolume, Getter::<SUBVOL_GETFLAGS, u64>::new()) }?;
    Ok(flags & SUBVOL_RDONLY != 0)
}

/// Makes a subvolume read-only or writable.
pub(crate) fn subvolume_set_read_only(subvolume: impl AsFd, read_only: bool) -> Result<(), Errno> {
    let flags = if read_only { SUBVOL_RDONLY } else { 0 };
    // SAFETY: the kernel reads one u64.
    unsafe { ioctl(subvolume, Setter::<SUBVOL_SETFLAGS, u64>::new(flags)) }
}

/// The subvolumes directly inside of one (not those inside of these), by path relative to its root directory.
pub(crate) fn subvolumes_inside(subvolume: impl AsFd) -> Result<Vec<OsString>, Errno> {
    let mut paths = Vec::new();
    let mut args = RootRefArgs {
        min_treeid: 0,
        refs: [[0; 2]; 255],
        count: 0,
        align: [0; 7],
    };
    loop {
        // SAFETY: the kernel reads and writes one btrfs_ioctl_get_subvol_rootref_args, whose size is asserted above.
        let result = unsafe { ioctl(subvolume.as_fd(), Updater::<GET_SUBVOL_ROOTREF, _>::new(&mut args)) };
        let more = match result {
            // There are more than fit; min_treeid is where to go on.
            Err(Errno::OVERFLOW) => true,
            result => result.map(|()| false)?,
        };
        for [treeid, dirid] in args.refs.iter().take(args.count.into()) {
            let mut lookup = LookupArgs {
                dirid: *dirid,
                treeid: *treeid,
                name: [0; 256],
                path: [0; 3824],
            };
            // SAFETY: the kernel reads and writes one btrfs_ioctl_ino_lookup_user_args, whose size is asserted above.
            unsafe { ioctl(subvolume.as_fd(), Updater::<INO_LOOKUP_USER, _>::new(&mut lookup)) }?;
            // The path ends in a slash, or is empty.
            paths.push(OsString::from_vec(
                [until_nul(&lookup.path), until_nul(&lookup.name)].concat(),
            ));
        }
        if !more {
            return Ok(paths);
        }
    }
}

/// The number of the subvolume that a file is in.
pub(crate) fn subvolume_id(file: impl AsFd) -> Result<u64, Errno> {
    let mut args = InodeLookupArgs {
        treeid: 0,
        objectid: ROOT_INODE,
        name: [0; 4080],
    };
    // SAFETY: the kernel reads and writes one btrfs_ioctl_ino_lookup_args, whose size is asserted above.
    unsafe { ioctl(file, Updater::<INO_LOOKUP, _>::new(&mut args)) }?;
    Ok(args.treeid)
}

/// Limits the bytes that a subvolume refers to; `None` takes the limit away. `ENOTCONN` if quotas are off.
pub(crate) fn subvolume_limit(subvolume: impl AsFd, bytes: Option<u64>) -> Result<(), Errno> {
    let args = QgroupLimitArgs {
        // The subvolume's own group.
        qgroupid: 0,
        flags: QGROUP_LIMIT_MAX_RFER,
        // The kernel clears a limit of this.
        max_referenced: bytes.unwrap_or(u64::MAX),
        max_exclusive: 0,
        reserved: [0; 2],
    };
    // SAFETY: the kernel reads one btrfs_ioctl_qgroup_limit_args, whose size is asserted above.
    unsafe { ioctl(subvolume, Setter::<QGROUP_LIMIT, _>::new(args)) }
}

/// Takes a quota group out of another, see btrfs-qgroup(8).
pub(crate) fn qgroup_take_out(file: impl AsFd, group: u64, of: u64) -> Result<(), Errno> {
    let args = QgroupAssignArgs {
        assign: 0,
        src: group,
        dst: of,
    };
    // SAFETY: the kernel reads one btrfs_ioctl_qgroup_assign_args: three numbers.
    unsafe { ioctl(file, Setter::<QGROUP_ASSIGN, _>::new(args)) }
}

/// Removes a quota group; `EBUSY` as long as anything is in it.
pub(crate) fn qgroup_destroy(file: impl AsFd, group: u64) -> Result<(), Errno> {
    let args = QgroupCreateArgs {
        create: 0,
        qgroupid: group,
    };
    // SAFETY: the kernel reads one btrfs_ioctl_qgroup_create_args: two numbers.
    unsafe { ioctl(file, Setter::<QGROUP_CREATE, _>::new(args)) }
}

/// A name as the kernel wants it: one component, NUL at the end.
fn padded<const N: usize>(name: &OsStr) -> Result<[u8; N], Errno> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let bytes = name.as_bytes_with_nul();
    let mut out = [0; N];
    out.get_mut(..bytes.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(bytes);
    Ok(out)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
