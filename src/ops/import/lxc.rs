//! The settings of a container of lxc, see lxc.container.conf(5).

use std::path::Path;

use super::foreign::{FIRST_LINK, Foreign, quota};

/// How many settings of links are read.
const LINKS_MAX: usize = 200;

/// Reads a `config`.
pub(super) fn read(text: &str) -> Foreign {
    let mut found = Foreign::default();
    let mut links = Vec::new();
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let (key, value) = (key.trim(), unquoted(value.trim()));
        match key.strip_prefix("lxc.net.").and_then(|rest| rest.split_once('.')) {
            Some((number, what)) if links.len() < LINKS_MAX => links.push((number, what, value)),
            Some(_) => found.untold("lxc.net"),
            None => setting(&mut found, key, value),
        }
    }
    network(&mut found, &links);
    found
}

/// A value without the quotes that may stand around it.
fn unquoted(value: &str) -> &str {
    let between = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    between('"').or_else(|| between('\'')).unwrap_or(value)
}

fn setting(found: &mut Foreign, key: &str, value: &str) {
    let Some(name) = key.strip_prefix("lxc.") else {
        return;
    };
    match name {
        "uts.name" | "utsname" => found.name = Some(value.to_owned()),
        "signal.halt" | "haltsignal" => found.nspawn("Exec", "KillSignal", value),
        "environment" if value.contains('=') => found.nspawn("Exec", "Environment", value),
        "group" => value.split(',').for_each(|group| found.group(group.trim())),
        "cap.drop" => {
            for capability in value.split_whitespace() {
                found.nspawn("Exec", "DropCapability", format!("CAP_{}", capability.to_uppercase()));
            }
        }
        "start.auto" => found.starts_at_boot = value == "1",
        "mount.entry" => mount(found, value),
        // A directory is in the archive; overlays, volumes and disks are not.
        "rootfs.path" | "rootfs" => {
            let is_directory = value.starts_with("dir:") || value.starts_with('/');
            found.elsewhere = (!is_directory).then(|| value.to_owned());
        }
        // systemd-nspawn does what they say by itself, or needs none of it.
        "rootfs.options"
        | "arch"
        | "include"
        | "idmap"
        | "id_map"
        | "tty.max"
        | "pty.max"
        | "start.delay"
        | "start.order"
        | "mount.auto"
        | "apparmor.profile"
        | "apparmor.allow_nesting"
        | "seccomp.profile"
        | "log.file"
        | "log.level"
        | "autodev" => {}
        _ => match (name.strip_prefix("prlimit."), cgroup(name, value)) {
            (Some(limit), _) => found.nspawn("Exec", &format!("Limit{}", limit.to_uppercase()), value),
            (None, Some((limit, amount))) => found.limit(limit, amount),
            (None, None) => found.untold(key),
        },
    }
}

/// A limit by a file of the control group.
fn cgroup(name: &str, value: &str) -> Option<(&'static str, String)> {
    let file = name.strip_prefix("cgroup2.").or(name.strip_prefix("cgroup."))?;
    let key = match file {
        "memory.max" | "memory.limit_in_bytes" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        "io.weight" => "IOWeight",
        "cpuset.cpus" => "AllowedCPUs",
        "cpuset.mems" => "AllowedMemoryNodes",
        "cpu.max" => {
            let (time, of) = value.split_once(' ').unwrap_or((value, "100000"));
            return Some(("CPUQuota", quota(time.parse().ok()?, of.trim().parse().ok()?)?));
        }
        _ => return None,
    };
    let value = if value == "max" { "infinity" } else { value };
    Some((key, value.to_owned()))
}

/// A line of fstab(5), whose place is in the container.
fn mount(found: &mut Foreign, line: &str) {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let &[what, place, kind, options, ..] = &fields[..] else {
        return found.untold("lxc.mount.entry");
    };
    let place = format!("/{}", place.trim_start_matches('/'));
    let has = |option: &str| options.split(',').any(|one| one == option);
    // systemd-nspawn mounts these by itself, and a guest its message queues.
    let is_given = ["/dev/shm", "/dev/mqueue"].contains(&place.as_str())
        || ["/proc", "/sys"]
            .iter()
            .any(|own| what == place && Path::new(what).starts_with(own));
    if is_given {
        return;
    }
    if (has("bind") || has("rbind")) && what.starts_with('/') {
        let key = if has("ro") { "BindReadOnly" } else { "Bind" };
        let optional = if has("optional") { "-" } else { "" };
        found.nspawn("Files", key, format!("{optional}{what}:{place}"));
    } else if kind == "tmpfs" {
        found.nspawn("Files", "TemporaryFileSystem", place);
    } else {
        found.untold(&format!("lxc.mount.entry of {place}"));
    }
}

fn network(found: &mut Foreign, links: &[(&str, &str, &str)]) {
    let mut numbers: Vec<&str> = links.iter().map(|(number, ..)| *number).collect();
    numbers.dedup();
    for (at, number) in numbers.into_iter().enumerate() {
        let of = |what: &str| {
            let mut found = links.iter().filter(|(of, key, _)| *of == number && *key == what);
            found.next_back().map(|(_, _, value)| *value)
        };
        let link = of("link").unwrap_or_default();
        if at == 0 && !matches!(of("type"), None | Some("none" | "empty")) {
            found.first_link(of("name").unwrap_or(FIRST_LINK));
        }
        match of("type").unwrap_or_default() {
            "veth" if at > 0 => found.untold("lxc.net"),
            "veth" if !link.is_empty() => found.nspawn("Network", "Bridge", link),
            "veth" => {}
            "none" => {
                found.nspawn("Network", "Private", "no");
                found.nspawn("Network", "VirtualEthernet", "no");
            }
            "empty" => {
                found.nspawn("Network", "Private", "yes");
                found.nspawn("Network", "VirtualEthernet", "no");
            }
            "phys" => found.nspawn("Network", "Interface", link),
            "macvlan" => found.nspawn("Network", "MACVLAN", link),
            "ipvlan" => found.nspawn("Network", "IPVLAN", link),
            _ => found.untold("lxc.net"),
        }
        if let Some(address) = of("hwaddr").filter(|_| at == 0) {
            found.address(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_becomes_settings() {
        let text = "# Template\nlxc.include = /usr/share/lxc/config/common.conf\nlxc.uts.name = \"web\"\n\
            lxc.net.0.type = veth\nlxc.net.0.link = lxcbr0\nlxc.net.0.hwaddr = 00:16:3e:00:00:07\n\
            lxc.cgroup2.memory.max = 512M\nlxc.cgroup2.cpu.max = 50000 100000\nlxc.cgroup2.pids.max = max\n\
            lxc.cap.drop = sys_module mac_admin\nlxc.mount.entry = /srv/data srv/data none bind,ro 0 0\n\
            lxc.hook.pre-start = /bin/evil\nlxc.environment = A=b\nlxc.prlimit.nofile = 1024\nlxc.group = onboot,shop\n\
            lxc.start.auto = 1\n";
        let found = read(text);
        assert_eq!(found.machine_name(), Some("web".parse().unwrap()));
        assert_eq!(found.left().to_string(), "lxc.hook.pre-start");
        assert!(found.starts_at_boot);
        let wishes = found.wishes(262);
        let said: Vec<(String, bool)> = wishes
            .asked
            .iter()
            .map(|asked| (format!("{}={}", asked.key, asked.value), asked.reaches))
            .collect();
        let expected = [
            ("MemoryMax=512M", false),
            ("CPUQuota=50%", false),
            ("TasksMax=infinity", true),
            ("DropCapability=CAP_SYS_MODULE", false),
            ("DropCapability=CAP_MAC_ADMIN", false),
            ("Environment=A=b", false),
            ("LimitNOFILE=1024", false),
            ("BindReadOnly=/srv/data:/srv/data", true),
            ("Bridge=lxcbr0", true),
            ("Group=onboot", false),
            ("Group=shop", false),
            ("Environment=SYSTEMD_NSPAWN_NETWORK_MAC=00:16:3e:00:00:07", false),
        ];
        for (text, reaches) in expected {
            assert!(said.contains(&(text.to_owned(), reaches)), "no {text} in {said:?}");
        }
        assert_eq!((said.len(), wishes.ignored.count()), (expected.len(), 0), "{said:?}");
    }

    #[test]
    fn what_systemd_nspawn_mounts_is_not_asked_for() {
        let found = read(
            "lxc.rootfs.path = overlay:/var/lib/lxc/a/rootfs:/var/lib/lxc/b/overlay/delta\n\
            lxc.mount.entry = shm dev/shm tmpfs defaults,create=dir 0 0\n\
            lxc.mount.entry = mqueue dev/mqueue mqueue defaults,optional,create=dir 0 0\n\
            lxc.mount.entry = /sys/kernel/security sys/kernel/security none ro,bind,optional 0 0\n\
            lxc.mount.entry = /srv srv none bind,optional 0 0\n\
            lxc.mount.entry = fuse mnt/f fuse.x defaults 0 0\n",
        );
        assert_eq!(found.left().to_string(), "lxc.mount.entry of /mnt/f");
        assert!(
            found
                .elsewhere
                .as_ref()
                .is_some_and(|place| place.starts_with("overlay:"))
        );
        let asked = found.wishes(257).asked;
        let said: Vec<(&str, &str)> = asked.iter().map(|asked| (&*asked.key, &*asked.value)).collect();
        assert_eq!(said, [("Bind", "-/srv:/srv")]);
    }

    #[test]
    fn the_first_link_has_a_name() {
        let link = |text: &str| read(text).link;
        assert_eq!(link("lxc.net.0.type = veth\n").as_deref(), Some("eth0"));
        assert_eq!(
            link("lxc.net.0.type = veth\nlxc.net.0.name = lan\n").as_deref(),
            Some("lan")
        );
        assert_eq!(link("lxc.net.0.type = veth\nlxc.net.0.name = ../x\n"), None);
        assert_eq!(link("lxc.net.0.type = empty\n"), None);
    }

    #[test]
    fn the_hosts_network_is_not_to_be_had_for_nothing() {
        let wishes = read("lxc.net.0.type = none\n").wishes(262);
        assert!(wishes.asked.len() == 2 && wishes.asked.iter().all(|asked| asked.reaches));
        let wishes = read("lxc.net.0.type = empty\n").wishes(262);
        assert!(wishes.asked.len() == 2 && wishes.asked.iter().all(|asked| !asked.reaches));
        // A value cannot bring lines of its own.
        let wishes = read("lxc.environment = A=b\u{b}[Files]\u{c}Bind=/\n").wishes(262);
        assert_eq!(wishes.asked.len(), 0);
        assert_eq!(wishes.ignored.to_string(), "[Exec] Environment=");
    }
}
