//! What only looks like files: the kernel's own filesystems.

use std::os::fd::AsFd;

use rustix::fs::{self, FsWord};
use rustix::io::Errno;

use super::side::Found;
use crate::ops::OpError;
use crate::sys::files::{FileError, shown};

/// Their numbers, see statfs(2) and <linux/magic.h>. Their files have no size, may have no end, and reading one may do
/// something or wait for ever.
const KERNELS: &[FsWord] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0xf97c_ff8c, // selinuxfs
    0xde5e_81e4, // efivarfs
    0xcafe_4a11, // bpf
    0x6759_6969, // rpc_pipefs
    0x0187,      // autofs
    // Any machine can mount one, and a hole that is read there takes memory that nobody gets back.
    0x8584_58f6, // ramfs
];

/// Whether something lies on such a filesystem.
pub(super) fn is_kernels(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(KERNELS.contains(&fs::fstatfs(fd)?.f_type))
}

/// Refuses to copy what lies there.
pub(super) fn refuse_kernels(found: &Found) -> Result<(), OpError> {
    if !is_kernels(&found.fd).map_err(FileError::io("copy", &found.label))? {
        return Ok(());
    }
    Err(OpError::Option {
        message: format!("cannot copy '{}': it is the kernel's, and no data", shown(&found.label)),
        hint: "read it in the machine: `machinist exec NAME -- cat FILE`".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_the_kernels() {
        assert_eq!(is_kernels(std::fs::File::open("/proc/self").unwrap()), Ok(true));
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(is_kernels(std::fs::File::open(directory.path()).unwrap()), Ok(false));
    }
}
