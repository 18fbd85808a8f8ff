//! The files of a control group that say what it uses, kept open: read once a second they cost next to nothing.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::cgroup::Cgroup;

/// The most that is read of a file: `io.stat` has a line for each disk.
const SIZE: usize = 64 * 1024;
/// µs in a second.
const SECOND: u64 = 1_000_000;

/// What a control group uses, and may use. `None` where the controller is not there, or there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// CPU time until now, in µs.
    pub cpu: Option<u64>,
    /// CPU time that it may have each second, in µs.
    pub cpu_limit: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// The most of it.
    pub memory_limit: Option<u64>,
    /// Tasks.
    pub tasks: Option<u64>,
    /// The most of them.
    pub tasks_limit: Option<u64>,
    /// Bytes read from disks until now.
    pub read: Option<u64>,
    /// Bytes written to them.
    pub written: Option<u64>,
}

/// The open files.
#[derive(Debug)]
pub struct Gauges {
    cpu: Gauge,
    cpu_limit: Gauge,
    memory: Gauge,
    memory_limit: Gauge,
    tasks: Gauge,
    tasks_limit: Gauge,
    io: Gauge,
}

/// One of them. It opens when it is first there: a controller may come later.
#[derive(Debug)]
struct Gauge {
    path: PathBuf,
    file: Option<File>,
}

impl Gauges {
    /// Those of a unit's `ControlGroup=`; `None` if it has none.
    #[must_use]
    pub fn of(control_group: &str) -> Option<Self> {
        let group = Cgroup::of(control_group)?;
        let gauge = |name: &str| Gauge {
            path: group.directory().join(name),
            file: None,
        };
        Some(Self {
            cpu: gauge("cpu.stat"),
            cpu_limit: gauge("cpu.max"),
            memory: gauge("memory.current"),
            memory_limit: gauge("memory.max"),
            tasks: gauge("pids.current"),
            tasks_limit: gauge("pids.max"),
            io: gauge("io.stat"),
        })
    }

    /// Reads them all.
    pub fn read(&mut self) -> Reading {
        let mut buffer = vec![0; SIZE];
        let mut number = |gauge: &mut Gauge| gauge.read(&mut buffer).and_then(|text| text.trim().parse().ok());
        let mut reading = Reading {
            memory: number(&mut self.memory),
            memory_limit: number(&mut self.memory_limit),
            tasks: number(&mut self.tasks),
            tasks_limit: number(&mut self.tasks_limit),
            ..Reading::default()
        };
        reading.cpu = self.cpu.read(&mut buffer).and_then(cpu_time);
        reading.cpu_limit = self.cpu_limit.read(&mut buffer).and_then(cpu_quota);
        if let Some(text) = self.io.read(&mut buffer) {
            reading.read = Some(sum(text, "rbytes="));
            reading.written = Some(sum(text, "wbytes="));
        }
        reading
    }
}

impl Gauge {
    fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a str> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        // It fails when the group is gone.
        let Ok(count) = self.file.as_ref()?.read_at(buffer, 0) else {
            self.file = None;
            return None;
        };
        std::str::from_utf8(&buffer[..count]).ok()
    }
}

/// Of `cpu.stat`.
fn cpu_time(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .and_then(|number| number.parse().ok())
}

/// Of `cpu.max`: µs in each period of so many µs.
fn cpu_quota(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    quota.checked_mul(SECOND)?.checked_div(period)
}

/// Of all disks in `io.stat`, as systemd counts them.
fn sum(text: &str, key: &str) -> u64 {
    let words = text.split_ascii_whitespace();
    let numbers = words.filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_understood() {
        assert_eq!(cpu_time("usage_usec 12\nuser_usec 3\n"), Some(12));
        assert_eq!(cpu_time(""), None);
        assert_eq!(cpu_quota("150000 100000\n"), Some(1_500_000));
        assert_eq!(cpu_quota("max 100000\n"), None);
        assert_eq!(cpu_quota("1 0\n"), None);
        let disks = "254:0 rbytes=4096 wbytes=10 rios=1 wios=2 dbytes=7 dios=0\n7:0 \n8:0 rbytes=1 wbytes=5\n";
        assert_eq!((sum(disks, "rbytes="), sum(disks, "wbytes=")), (4097, 15));
    }

    #[test]
    fn what_comes_later_is_read_and_what_goes_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut gauge = Gauge {
            path: directory.path().join("memory.current"),
            file: None,
        };
        let mut buffer = [0; 16];
        assert_eq!(gauge.read(&mut buffer), None);
        std::fs::write(&gauge.path, "7\n").unwrap();
        assert_eq!(gauge.read(&mut buffer), Some("7\n"));
        std::fs::write(&gauge.path, "8\n").unwrap();
        assert_eq!(gauge.read(&mut buffer), Some("8\n"));
    }
}
