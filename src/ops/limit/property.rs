//! Limits as properties of a unit.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use crate::limit::{Amount, Assignment, Key, Kind, Wanted};
use crate::ops::OpError;
use crate::sys::bus::Properties;
use crate::sys::bus::systemd1::Setting;

/// A property and what it is set to.
pub(in crate::ops) type Property = (&'static str, Setting);

/// The properties that say all these limits of a unit that has others now; those of several devices become one.
pub(in crate::ops) fn properties(limits: &[Assignment], unit: &Properties) -> Vec<Property> {
    let mut all: Vec<Property> = Vec::new();
    for limit in limits.iter().filter(|limit| limit.key.is_property()) {
        let Wanted::Set(amount) = &limit.wanted else { continue };
        let (name, mut setting) = property(limit.key, amount);
        if let Setting::Pairs(devices) = &mut setting {
            for (_, number) in devices.iter_mut().filter(|(_, number)| *number == u64::MAX) {
                *number = neutral(limit.key, unit);
            }
        }
        match (all.iter_mut().find(|(known, _)| *known == name), setting) {
            (Some((_, Setting::Pairs(devices))), Setting::Pairs(more)) => devices.extend(more),
            (_, setting) => all.push((name, setting)),
        }
    }
    all
}

fn property(key: &'static Key, amount: &Amount) -> Property {
    let setting = match amount {
        Amount::Number(number) => Setting::Number(*number),
        Amount::Part(parts) => {
            // As systemd scales a percentage, rounded.
            let scaled = (u64::from(*parts) * u64::from(u32::MAX) + 5000) / 10_000;
            let setting = Setting::Small(u32::try_from(scaled).unwrap_or(u32::MAX));
            return (key.scale().unwrap_or(key.property()), setting);
        }
        Amount::Indices(list) => Setting::Bytes(mask(list)),
        Amount::Devices(devices) => Setting::Pairs(devices.clone()),
        Amount::Boolean(yes) => Setting::Boolean(*yes),
        Amount::Word(word) => Setting::Text(word.clone()),
        Amount::Integer(number) => Setting::Text(number.to_string()),
    };
    (key.property(), setting)
}

/// A bit for each, the lowest first.
fn mask(list: &[usize]) -> Vec<u8> {
    let mut bytes = vec![0; list.last().map_or(0, |last| last / 8 + 1)];
    for index in list {
        bytes[index / 8] |= 1 << (index % 8);
    }
    bytes
}

/// What a device has for which nothing is said. systemd knows no number that takes the weight of one device back: it is that
/// of all others.
fn neutral(key: &Key, unit: &Properties) -> u64 {
    const DEFAULT_WEIGHT: u64 = 100;
    match (key.kind, unit.setting("IOWeight")) {
        (Kind::DeviceWeight, Some(Setting::Number(weight))) if weight != u64::MAX => weight,
        (Kind::DeviceWeight, _) => DEFAULT_WEIGHT,
        _ => u64::MAX,
    }
}

/// What has to be set before a limit is taken off, for the kernel to hear of it; `None` if it does so anyway.
///
/// It takes no CPUs away from a group with processes in it until none is left, and so never gives all of them back by an
/// empty list. Of devices that stand in a list no more systemd does not tell it.
pub(super) fn all_again(key: &Key, before: &Properties, wanted: &Setting) -> Option<Setting> {
    let wanted = match (wanted, before.setting(key.property())) {
        (Setting::Bytes(wanted), _) => wanted,
        (Setting::Pairs(wanted), Some(Setting::Pairs(devices))) if wanted.is_empty() && !devices.is_empty() => {
            let number = neutral(key, before);
            return Some(Setting::Pairs(
                devices.into_iter().map(|(path, _)| (path, number)).collect(),
            ));
        }
        _ => return None,
    };
    let had_some =
        matches!(before.setting(key.property()), Some(Setting::Bytes(mask)) if mask.iter().any(|byte| *byte > 0));
    if wanted.iter().any(|byte| *byte > 0) || !had_some {
        return None;
    }
    let list = fs::read_to_string(present(key.kind).1).ok()?;
    let numbers = list
        .trim()
        .split([',', '-'])
        .filter_map(|number| number.parse::<usize>().ok());
    let last = numbers.max()?;
    let all: Vec<usize> = (0..=last).filter(|index| is_in(list.trim(), *index)).collect();
    Some(Setting::Bytes(mask(&all)))
}

/// What a key chooses from, and where the kernel lists it.
fn present(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Nodes => ("NUMA nodes", "/sys/devices/system/node/online"),
        _ => ("CPUs", "/sys/devices/system/cpu/present"),
    }
}

/// What brings a running unit to what its files say, after its properties were read from them again: the kernel still has
/// what it was told before.
pub(super) fn again(keys: &[&'static Key], before: &Properties, now: &Properties) -> Vec<Property> {
    let mut all = Vec::new();
    for key in keys.iter().filter(|key| key.is_property()) {
        let name = key.property();
        let Some(setting) = now.setting(name) else { continue };
        let setting = match (before.setting(name), setting) {
            (Some(Setting::Pairs(former)), Setting::Pairs(mut devices)) => {
                let gone = former
                    .into_iter()
                    .filter(|(path, _)| !devices.iter().any(|(kept, _)| kept == path));
                let number = neutral(key, now);
                let gone: Vec<_> = gone.map(|(path, _)| (path, number)).collect();
                devices.extend(gone);
                if devices.is_empty() {
                    continue;
                }
                Setting::Pairs(devices)
            }
            (_, setting) => all_again(key, before, &setting).unwrap_or(setting),
        };
        if !all.iter().any(|(known, _)| *known == name) {
            all.push((name, setting));
        }
    }
    all
}

/// Refuses what this host does not have.
pub(super) fn check_host(limits: &[Assignment], systemd: u32) -> Result<(), OpError> {
    let refuse = |limit: &Assignment, reason: String, hint: &str| OpError::Option {
        message: format!("{} cannot be set: {reason}", limit.text),
        hint: hint.to_owned(),
    };
    for limit in limits {
        if limit.key.since > systemd {
            let reason = format!("it needs systemd {}, and this is {systemd}", limit.key.since);
            return Err(refuse(limit, reason, "see systemd.resource-control(5)"));
        }
        match &limit.wanted {
            Wanted::Set(Amount::Devices(devices)) => {
                for (path, _) in devices.iter().filter(|(_, number)| *number != u64::MAX) {
                    check_device(Path::new(path))
                        .map_err(|reason| refuse(limit, reason, "see `lsblk --paths` for the devices of this host"))?;
                }
            }
            Wanted::Set(Amount::Indices(list)) => {
                let (what, file) = present(limit.key.kind);
                let Ok(present) = fs::read_to_string(file) else {
                    continue;
                };
                let present = present.trim();
                if list.iter().any(|index| !is_in(present, *index)) {
                    let reason = format!("this host has {what} {present}");
                    return Err(refuse(limit, reason, "see `lscpu`"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_device(path: &Path) -> Result<(), String> {
    let shown = crate::sys::files::shown(path);
    match fs::metadata(path) {
        // A file stands for the device that it lies on.
        Ok(found) if found.is_dir() || found.is_file() || found.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(format!("'{shown}' is no block device")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!("there is no device '{shown}'")),
        Err(error) => Err(format!("device '{shown}' cannot be looked at: {error}")),
    }
}

/// Whether a list such as `0-3,7` has it.
fn is_in(list: &str, index: usize) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&index),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::parse_all;

    #[test]
    fn limits_are_what_the_bus_wants() {
        let words = [
            "memory=512M",
            "tasks=50%",
            "cpus=1.5",
            "cpuset=0,9",
            "io-read=/dev/a:1M",
            "io-read=/dev/b:2K",
            "nofile=100",
            "swap=",
            "ManagedOOMSwap=kill",
        ];
        let limits = parse_all(&words.map(str::to_owned)).unwrap();
        let expected = [
            ("MemoryMax", Setting::Number(512 << 20)),
            ("TasksMaxScale", Setting::Small(2_147_483_648)),
            ("CPUQuotaPerSecUSec", Setting::Number(1_500_000)),
            ("AllowedCPUs", Setting::Bytes(vec![1, 2])),
            (
                "IOReadBandwidthMax",
                Setting::Pairs(vec![("/dev/a".into(), 1_000_000), ("/dev/b".into(), 2000)]),
            ),
            ("ManagedOOMSwap", Setting::Text("kill".into())),
        ];
        assert_eq!(properties(&limits, &Properties::default()), expected);
    }

    #[test]
    fn devices_are_given_back_before_they_are_forgotten() {
        let wanted = |word: &str| {
            let limits = parse_all(&[word.to_owned()]).unwrap();
            let pairs = properties(&limits, &Properties::default()).remove(0).1;
            (limits[0].key, pairs)
        };
        let pair = |number| Setting::Pairs(vec![("/dev/a".into(), number)]);
        let before = Properties::of("IODeviceWeight", &pair(200));
        let (key, none) = wanted("IODeviceWeight=none");
        assert_eq!(none, Setting::Pairs(Vec::new()));
        assert_eq!(all_again(key, &before, &none), Some(pair(100)));
        assert_eq!(all_again(key, &Properties::default(), &none), None);
        assert_eq!(all_again(key, &before, &pair(5)), None);
        // After a reload it is gone from systemd's list.
        let now = Properties::of("IODeviceWeight", &Setting::Pairs(Vec::new()));
        assert_eq!(again(&[key], &before, &now), [("IODeviceWeight", pair(100))]);
        let (key, none) = wanted("io-latency=none");
        let before = Properties::of(key.property(), &pair(25_000));
        assert_eq!(all_again(key, &before, &none), Some(pair(u64::MAX)));
        // Of one device alone.
        assert_eq!(wanted("IODeviceWeight=/dev/a:none").1, pair(100));
        assert_eq!(wanted("io-latency=/dev/a:none").1, pair(u64::MAX));
    }

    #[test]
    fn what_the_host_lacks_is_refused() {
        let check = |word: &str| check_host(&parse_all(&[word.to_owned()]).unwrap(), 252).map_err(|e| e.to_string());
        check("cpuset=0").unwrap();
        check("io-read=/no/such:none").unwrap();
        check("io-read=/:1M").unwrap();
        for (word, reason) in [
            ("cpuset=0,8000", "this host has CPUs 0"),
            ("io-read=/dev/no-such:1M", "there is no device '/dev/no-such'"),
            ("io-read=/dev/null:1M", "'/dev/null' is no block device"),
            ("zswap=1G", "it needs systemd 253, and this is 252"),
        ] {
            let error = check(word).unwrap_err();
            assert!(error.contains(reason) && error.starts_with(word), "{error}");
        }
    }

    #[test]
    fn lists_of_the_kernel_are_ranges() {
        assert!(is_in("0-3,7", 2) && is_in("0-3,7", 7) && !is_in("0-3,7", 5) && is_in("0", 0));
        assert_eq!(mask(&[0, 1, 8]), [3, 1]);
    }
}
