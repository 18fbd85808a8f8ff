//! What incus says of a container in `backup/index.yaml`, as far as it can be said by systemd.

use std::collections::BTreeMap;

use super::foreign::{FIRST_LINK, Foreign, quota};

/// A path of keys, and the value there: of YAML that much is read, as incus writes it.
type Values = BTreeMap<Vec<String>, String>;

/// What stands for a text of several lines, which none of the settings that are known has.
const LINES: &str = "\0";

/// Where the settings of the container are; with those of its profiles.
const CONFIG: [&str; 3] = ["config", "container", "expanded_config"];
const DEVICES: [&str; 3] = ["config", "container", "expanded_devices"];

/// Reads an index.
pub(super) fn read(text: &str) -> Foreign {
    let values = values(text);
    let mut found = Foreign::default();
    found.name = values.get(&["name".to_owned()][..]).cloned();
    for (path, value) in &values {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.strip_prefix(&CONFIG) {
            Some([key]) if value == LINES => untold(&mut found, key),
            Some([key]) => setting(&mut found, key, value),
            _ => {
                if let Some([device, "type"]) = path.strip_prefix(&DEVICES) {
                    add_device(&mut found, device, value, &values);
                }
            }
        }
    }
    found
}

fn setting(found: &mut Foreign, key: &str, value: &str) {
    match key {
        "limits.memory" => found.limit("MemoryMax", size(value)),
        "limits.processes" => found.limit("TasksMax", value),
        "limits.cpu" => match value.parse::<u64>() {
            Ok(count) => found.limit("CPUQuota", quota(count, 1).unwrap_or_default()),
            Err(_) => found.limit("AllowedCPUs", value),
        },
        "limits.cpu.allowance" => match (share(value), allowance(value)) {
            (Some(weight), _) => found.limit("CPUWeight", weight.to_string()),
            (None, Some(quota)) => found.limit("CPUQuota", quota),
            (None, None) => found.untold(key),
        },
        "boot.autostart" => found.starts_at_boot = value == "true",
        "security.privileged" if value == "true" => found.nspawn("Exec", "PrivateUsers", "no"),
        "security.privileged" | "security.nesting" | "security.idmap.isolated" if value == "false" => {}
        _ => {
            if let Some(name) = key.strip_prefix("environment.") {
                found.nspawn("Exec", "Environment", format!("{name}={value}"));
            } else if key == "volatile.eth0.hwaddr" {
                found.address(value);
            } else if let Some(limit) = key.strip_prefix("limits.kernel.") {
                found.nspawn("Exec", &format!("Limit{}", limit.to_uppercase()), value);
            } else {
                untold(found, key);
            }
        }
    }
}

/// Notes a setting, unless it is one of what incus keeps in mind for itself.
fn untold(found: &mut Foreign, key: &str) {
    let own = ["volatile.", "image.", "boot.", "user.", "snapshots.", "cluster."];
    if !own.iter().any(|prefix| key.starts_with(prefix)) {
        found.untold(key);
    }
}

/// `50%`: no bound, but a share of the processors while others want them, too, where these have 100.
fn share(value: &str) -> Option<u32> {
    let percent = value.strip_suffix('%')?.parse().ok()?;
    (1..=100).contains(&percent).then_some(percent)
}

/// So much time of so much, a bound: `25ms/100ms`.
fn allowance(value: &str) -> Option<String> {
    let (time, of) = value.split_once('/')?;
    let number = |text: &str| text.trim().strip_suffix("ms")?.parse().ok();
    quota(number(time)?, number(of)?)
}

/// `512MiB` as `512M`; `512MB` as its bytes, which are powers of ten to incus.
fn size(value: &str) -> String {
    let units = [("kB", 3), ("KB", 3), ("MB", 6), ("GB", 9), ("TB", 12)];
    for (unit, zeros) in units {
        let number = value
            .strip_suffix(unit)
            .and_then(|number| number.trim().parse::<u64>().ok());
        if let Some(bytes) = number.and_then(|number| number.checked_mul(10_u64.pow(zeros))) {
            return bytes.to_string();
        }
    }
    value.strip_suffix("iB").unwrap_or(value).to_owned()
}

fn add_device(found: &mut Foreign, device: &str, kind: &str, values: &Values) {
    let of = |key: &str| {
        let path: Vec<String> = DEVICES
            .iter()
            .chain(&[device, key])
            .map(|&part| part.to_owned())
            .collect();
        values.get(&path).map(String::as_str)
    };
    match (kind, of("source"), of("path")) {
        // The tree itself.
        ("disk", _, Some("/")) | ("none", ..) => {}
        ("nic", ..) if found.link.is_some() => found.untold(&format!("device {device}")),
        ("nic", ..) => {
            found.first_link(of("name").unwrap_or(FIRST_LINK));
            add_link(found, device, values);
        }
        ("disk", Some(source), Some(place)) if source.starts_with('/') => {
            let is_read_only = of("readonly") == Some("true");
            let key = if is_read_only { "BindReadOnly" } else { "Bind" };
            found.nspawn("Files", key, format!("{source}:{place}"));
        }
        _ => found.untold(&format!("device {device}")),
    }
}

/// The link that a machine has: what of it systemd-nspawn can be told.
fn add_link(found: &mut Foreign, device: &str, values: &Values) {
    let settings = values.iter().filter_map(|(path, value)| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.strip_prefix(&DEVICES) {
            Some(&[of, key]) if of == device => Some((key.to_owned(), value.as_str())),
            _ => None,
        }
    });
    let settings: BTreeMap<String, &str> = settings.collect();
    // One of a network that incus looks after has no type of its own, and that network is a bridge, mostly.
    let kind = settings.get("nictype").copied().unwrap_or("bridged");
    for (key, value) in settings {
        match (key.as_str(), kind) {
            ("type" | "name" | "nictype", _) => {}
            ("hwaddr", _) => found.address(value),
            ("parent", "bridged") | ("network", _) => found.nspawn("Network", "Bridge", value),
            ("parent", "macvlan") => found.nspawn("Network", "MACVLAN", value),
            ("parent", "ipvlan") => found.nspawn("Network", "IPVLAN", value),
            ("parent", "physical") => found.nspawn("Network", "Interface", value),
            _ => found.untold(&format!("device {device} {key}")),
        }
    }
}

/// The scalars of mappings by their paths. Lists are passed over, and of texts of several lines there is that there is one.
fn values(text: &str) -> Values {
    let mut values = Values::new();
    // Of each mapping that is open its indentation and its key.
    let mut open: Vec<(usize, String)> = Vec::new();
    let mut block: Option<usize> = None;
    for line in text.lines() {
        let rest = line.trim_start_matches(' ');
        let indent = line.len() - rest.len();
        if rest.is_empty() || rest.starts_with('#') {
            continue;
        }
        if block.is_some_and(|above| indent > above) {
            continue;
        }
        block = None;
        // What is in a list has no path; what comes after it is less indented than its items, or is no item.
        if rest == "-" || rest.starts_with("- ") {
            block = Some(indent);
            continue;
        }
        let Some((key, value)) = key_and_value(rest) else {
            continue;
        };
        open.retain(|(above, _)| *above < indent);
        if value.is_empty() {
            open.push((indent, key));
            continue;
        }
        let mut path: Vec<String> = open.iter().map(|(_, key)| key.clone()).collect();
        path.push(key);
        let value = if ["|", "|-", "|+", ">", ">-", ">+"].contains(&value) {
            block = Some(indent);
            LINES.to_owned()
        } else {
            scalar(value)
        };
        values.insert(path, value);
    }
    values
}

/// `key: value`; a key may be quoted.
fn key_and_value(line: &str) -> Option<(String, &str)> {
    let (key, value) = match line.strip_suffix(':') {
        Some(key) if !key.contains(": ") => (key, ""),
        _ => line.split_once(": ")?,
    };
    Some((scalar(key), value.trim()))
}

/// A scalar without its quotes.
fn scalar(text: &str) -> String {
    let text = text.trim();
    let between = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(inner) = between('\'') {
        return inner.replace("''", "'");
    }
    match between('"') {
        // As JSON has them, which YAML's are a superset of.
        Some(inner) => serde_json::from_str(text).unwrap_or_else(|_| inner.to_owned()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "name: c1
backend: dir
pool: default
optimized: false
type: container
config:
  container:
    architecture: x86_64
    config:
      limits.memory: 1GiB
    expanded_config:
      image.description: Debian trixie amd64 (20250101_05:24)
      limits.cpu: \"2\"
      limits.memory: 512MiB
      limits.processes: \"200\"
      raw.lxc: |-
        lxc.hook.pre-start = /bin/evil
        limits.memory: 9GiB
      security.privileged: \"true\"
      boot.autostart: \"true\"
      volatile.eth1.hwaddr: 00:16:3e:aa:bb:cc
      volatile.eth0.name: eth0
      volatile.idmap.next: '[{\"Isuid\":true,\"Isgid\":false,\"Hostid\":1000000,\"Nsid\":0,\"Maprange\":1000000000}]'
      environment.LANG: 'C.UTF-8'
    profiles:
    - default
    - name: limits.memory
    expanded_devices:
      data:
        path: /data
        readonly: \"true\"
        source: /srv/data
        type: disk
      eth0:
        hwaddr: 00:16:3e:11:22:33
        nictype: bridged
        parent: incusbr0
        type: nic
      eth1:
        hwaddr: 00:16:3e:11:22:44
        nictype: bridged
        parent: incusbr0
        type: nic
      web:
        connect: tcp:127.0.0.1:80
        listen: tcp:0.0.0.0:8080
        type: proxy
      gpu:
        type: gpu
      root:
        path: /
        pool: default
        type: disk
    name: c1
  pool:
    name: default
";

    #[test]
    fn an_index_becomes_settings() {
        let found = read(INDEX);
        assert_eq!(found.machine_name(), Some("c1".parse().unwrap()));
        assert_eq!(found.left().to_string(), "raw.lxc, device eth1, device gpu, device web");
        assert!(found.starts_at_boot);
        let wishes = found.wishes(257);
        let said: Vec<String> = wishes
            .asked
            .iter()
            .map(|asked| format!("{}={}{}", asked.key, asked.value, if asked.reaches { "!" } else { "" }))
            .collect();
        for text in [
            "CPUQuota=200%",
            "MemoryMax=512M",
            "TasksMax=200",
            "PrivateUsers=no!",
            "Environment=LANG=C.UTF-8",
            "BindReadOnly=/srv/data:/data!",
            "Bridge=incusbr0!",
            "Environment=SYSTEMD_NSPAWN_NETWORK_MAC=00:16:3e:11:22:33",
        ] {
            assert!(said.contains(&text.to_owned()), "no {text} in {said:?}");
        }
        assert_eq!((said.len(), wishes.ignored.count()), (8, 0), "{said:?}");
    }

    #[test]
    fn a_link_is_what_its_type_says() {
        let told = |link: &str| {
            let head = "config:\n  container:\n    expanded_devices:\n      eth0:\n        type: nic\n";
            let found = read(&format!("{head}{link}"));
            let asked = found.wishes(257).asked;
            let said: Vec<String> = asked
                .iter()
                .map(|asked| format!("{}={}", asked.key, asked.value))
                .collect();
            (said.join(" "), found.left().to_string())
        };
        let of = |said: &str, left: &str| (said.to_owned(), left.to_owned());
        let macvlan = "        nictype: macvlan\n        parent: eno1\n        mtu: \"1400\"\n";
        assert_eq!(told(macvlan), of("MACVLAN=eno1", "device eth0 mtu"));
        let managed = "        network: incusbr0\n        ipv4.address: 10.1.2.3\n";
        assert_eq!(told(managed), of("Bridge=incusbr0", "device eth0 ipv4.address"));
        let sriov = "        nictype: sriov\n        parent: eno1\n";
        assert_eq!(told(sriov), of("", "device eth0 parent"));
    }

    #[test]
    fn sizes_and_shares_are_those_of_incus() {
        assert_eq!([size("512MB"), size("1GiB"), size("50%")], ["512000000", "1G", "50%"]);
        assert_eq!(allowance("25ms/100ms").as_deref(), Some("25%"));
        assert_eq!((allowance("50%"), allowance("x")), (None, None));
        let shares = ["50%", "0%", "101%", "25ms/100ms"].map(share);
        assert_eq!(shares, [Some(50), None, None, None]);
    }
}
