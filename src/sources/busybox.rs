//! `template:busybox`: a guest that is nothing but the host's static busybox, made in milliseconds.
//!
//! The tree is our own and new, so plain file functions write it.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::SourceError;
use crate::machine::{Cancel, Report};
use crate::sys::process::{Program, find_program, require_program};

/// Where ELF program headers are looked for, in bytes from the start; they follow the ELF header.
const HEADERS_MAX: u64 = 64 << 10;

/// Who gets to the console is root on the host, and root has no password here. A getty would need a console that is not yet the
/// terminal of the first process.
const INITTAB: &str = "\
::sysinit:/etc/init.d/rcS
console::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::restart:/sbin/init
";

/// systemd-nspawn has mounted /proc, /sys, /dev, /run and /tmp by then.
const RCS: &str = "\
#!/bin/sh
[ -s /etc/hostname ] && hostname -F /etc/hostname
ip link set lo up
if [ -e /sys/class/net/host0 ]; then
    ip link set host0 up
    udhcpc -b -S -i host0 -x \"hostname:$(hostname)\" -p /run/udhcpc.host0.pid -s /usr/share/udhcpc/default.script \\
        >/dev/null 2>&1 &
fi
for script in /etc/rc.d/*; do
    [ -x \"$script\" ] && \"$script\" start
done
exit 0
";

const UDHCPC: &str = "\
#!/bin/sh
# Called by udhcpc: sets what the DHCP server gave.
case \"$1\" in
deconfig)
    ip -4 addr flush dev \"$interface\"
    ip link set \"$interface\" up
    ;;
bound | renew)
    ip -4 addr flush dev \"$interface\"
    ip addr add \"$ip/${mask:-24}\" ${broadcast:+broadcast \"$broadcast\"} dev \"$interface\"
    for gateway in $router; do
        ip route add default via \"$gateway\" dev \"$interface\"
        break
    done
    {
        [ -n \"$domain\" ] && echo \"search $domain\"
        for server in $dns; do echo \"nameserver $server\"; done
    } >/etc/resolv.conf.new
    mv /etc/resolv.conf.new /etc/resolv.conf
    ;;
esac
exit 0
";

/// Fixed files of the tree: path, content, mode.
const FILES: &[(&str, &str, u32)] = &[
    ("etc/inittab", INITTAB, 0o644),
    ("etc/init.d/rcS", RCS, 0o755),
    ("usr/share/udhcpc/default.script", UDHCPC, 0o755),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        0o644,
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", 0o644),
    ("etc/shadow", "root:*:1:0:99999:7:::\nnobody:*:1:0:99999:7:::\n", 0o600),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
        0o644,
    ),
    ("etc/shells", "/bin/sh\n/bin/ash\n", 0o644),
    ("etc/profile", "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n", 0o644),
    (
        "usr/share/machinist/host0",
        "/etc/init.d/rcS configures host0.\n",
        0o644,
    ),
];

const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc/init.d", 0o755),
    ("etc/rc.d", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/sbin", 0o755),
    ("usr/share/machinist", 0o755),
    ("usr/share/udhcpc", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// The host's static busybox, or an error that names its package.
pub(crate) fn find() -> Result<PathBuf, SourceError> {
    require_program("busybox")?;
    let path = find_program("busybox".as_ref()).unwrap_or_else(|| PathBuf::from("/bin/busybox"));
    let mut start = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(HEADERS_MAX).read_to_end(&mut start))
        .map_err(|error| SourceError::io("read", &path, error))?;
    match linkage(&start) {
        Some(Linkage::Static) => Ok(path),
        Some(Linkage::Dynamic) => Err(SourceError::NotStatic {
            path,
            what: "dynamically linked",
        }),
        None => Err(SourceError::NotStatic {
            path,
            what: "no ELF program",
        }),
    }
}

/// Fills `target`, an empty directory.
pub(crate) fn fill(target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), SourceError> {
    report.phase("making a busybox tree");
    let program = find()?;
    let listed = Program::new(program.as_os_str()).arg("--list").run(cancel)?.stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    for (path, mode) in DIRECTORIES {
        let path = target.join(path);
        let made = fs::create_dir_all(&path).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(*mode)));
        made.map_err(|error| SourceError::io("create", &path, error))?;
    }
    for (link, text) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("var/run", "../run"),
    ] {
        link_to(text, &target.join(link))?;
    }
    let copy = target.join("usr/bin/busybox");
    fs::copy(&program, &copy)
        .and_then(|_| fs::set_permissions(&copy, Permissions::from_mode(0o755)))
        .map_err(|error| SourceError::io("write", &copy, error))?;
    for applet in listed.lines().map(str::trim).filter(|name| is_applet(name)) {
        let (place, text) = if SYSTEM_APPLETS.contains(&applet) {
            ("usr/sbin", "../bin/busybox")
        } else {
            ("usr/bin", "busybox")
        };
        link_to(text, &target.join(place).join(applet))?;
    }
    link_to("../bin/busybox", &target.join("usr/sbin/init"))?;
    for (path, content, mode) in FILES {
        write(&target.join(path), content, *mode)?;
    }
    write(&target.join("usr/lib/os-release"), &os_release(&copy, cancel)?, 0o644)?;
    link_to("../usr/lib/os-release", &target.join("etc/os-release"))
}

/// Applets that belong into /sbin, because something calls them there by path.
const SYSTEM_APPLETS: &[&str] = &[
    "arp",
    "getty",
    "halt",
    "ifconfig",
    "ifdown",
    "ifup",
    "init",
    "ip",
    "klogd",
    "loadkmap",
    "poweroff",
    "reboot",
    "route",
    "start-stop-daemon",
    "sulogin",
    "sysctl",
    "syslogd",
    "udhcpc",
    "udhcpc6",
    "udhcpd",
];

fn is_applet(name: &str) -> bool {
    !name.is_empty() && name != "busybox" && !name.contains('/') && name != "." && name != ".."
}

fn os_release(busybox: &Path, cancel: &Cancel) -> Result<String, SourceError> {
    // "BusyBox v1.35.0 (Debian 1:1.35.0-4) multi-call binary."
    let banner = Program::new(busybox.as_os_str())
        .arg("--help")
        .run_any(cancel, &mut |_| {})?;
    let banner = String::from_utf8_lossy(&banner.stdout).into_owned();
    let version: String = banner
        .strip_prefix("BusyBox v")
        .unwrap_or_default()
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .collect();
    Ok(format!(
        "ID=busybox\nNAME=BusyBox\nVERSION_ID={version}\nPRETTY_NAME=\"BusyBox {version}\"\n"
    ))
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), SourceError> {
    fs::write(path, content)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|error| SourceError::io("write", path, error))
}

fn link_to(text: &str, path: &Path) -> Result<(), SourceError> {
    match symlink(text, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(SourceError::io("link", path, error)),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Linkage {
    Static,
    Dynamic,
}

/// Reads an ELF file's program headers, see elf(5): a program that needs a dynamic loader names it in a `PT_INTERP`. `None`
/// if it is no ELF program, or its headers are not near its start.
fn linkage(file: &[u8]) -> Option<Linkage> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize, little: bool| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(if little {
            bytes.iter().rev().fold(0, fold)
        } else {
            bytes.iter().fold(0, fold)
        })
    };
    if !file.starts_with(b"\x7fELF") {
        return None;
    }
    let little = *file.get(5)? == 1;
    // Offsets of e_phoff, its size, and of e_phentsize, by class.
    let (phoff, size, phentsize) = match *file.get(4)? {
        1 => (0x1c, 4, 0x2a),
        2 => (0x20, 8, 0x36),
        _ => return None,
    };
    let table = usize::try_from(number(phoff, size, little)?).ok()?;
    let entry = usize::try_from(number(phentsize, 2, little)?).ok()?;
    let count = usize::try_from(number(phentsize + 2, 2, little)?).ok()?;
    if count == 0 {
        return None;
    }
    for index in 0..count {
        if number(table.checked_add(index * entry)?, 4, little)? == PT_INTERP {
            return Some(Linkage::Dynamic);
        }
    }
    Some(Linkage::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linkage_is_read_from_the_program_headers() {
        let this = fs::read("/proc/self/exe").unwrap();
        assert_eq!(linkage(&this), Some(Linkage::Dynamic));
        assert_eq!(linkage(b"#!/bin/sh\n"), None);
        // An ELF header alone, with one PT_LOAD after it.
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20] = 64;
        elf[0x36] = 56;
        elf[0x38] = 1;
        elf[64] = 1;
        assert_eq!(linkage(&elf), Some(Linkage::Static));
        elf[64] = 3;
        assert_eq!(linkage(&elf), Some(Linkage::Dynamic));
        for length in 0..elf.len() {
            linkage(&elf[..length]);
        }
        elf[0x38] = 2;
        assert_eq!(linkage(&elf[..64 + 56]), Some(Linkage::Dynamic));
    }
}
