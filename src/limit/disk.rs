//! How much of the disk a machine may take, as it is given on the command line.

use super::ValueError;
use crate::nspawn::number::size;

/// Less than this is a slip of the pen: no machine runs in it.
const LEAST: u64 = 1 << 20;

/// What a machine is to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskLimit {
    /// As much as there is.
    None,
    /// This many bytes.
    Bytes(u64),
}

impl DiskLimit {
    /// The number, if there is one.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

/// Reads a size, or no limit, which machinectl calls `-`.
pub fn read_disk_limit(text: &str) -> Result<DiskLimit, ValueError> {
    if matches!(text, "none" | "infinity" | "-") {
        return Ok(DiskLimit::None);
    }
    if text.starts_with('-') {
        return Err(ValueError::Negative);
    }
    match size(text).ok_or(ValueError::Expected("bytes such as 10G, or none"))? {
        0 => Err(ValueError::Zero),
        1..LEAST => Err(ValueError::TooSmall("1M")),
        // Filesystems count blocks, and the greatest number stands for no limit.
        bytes if bytes > u64::MAX >> 11 => Err(ValueError::TooBig("8191P".to_owned())),
        bytes => Ok(DiskLimit::Bytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_none() {
        assert_eq!(read_disk_limit("10G"), Ok(DiskLimit::Bytes(10 << 30)));
        assert_eq!(read_disk_limit("1.5G"), Ok(DiskLimit::Bytes(3 << 29)));
        for none in ["none", "infinity", "-"] {
            assert_eq!(read_disk_limit(none), Ok(DiskLimit::None));
        }
        assert_eq!(read_disk_limit("0"), Err(ValueError::Zero));
        assert_eq!(read_disk_limit("1000K"), Err(ValueError::TooSmall("1M")));
        assert_eq!(read_disk_limit("-5G"), Err(ValueError::Negative));
        assert!(matches!(read_disk_limit("9E"), Err(ValueError::TooBig(_))));
        for text in ["", "web", "10X", "10 %", "50%"] {
            assert!(matches!(read_disk_limit(text), Err(ValueError::Expected(_))), "{text}");
        }
    }
}
