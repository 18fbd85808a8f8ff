//! `config show`: what it says holds is what systemd, systemd-nspawn and the guest have.

mod runs;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use machinist::unit::keys;
use serde_json::Value;

use crate::support::{Guest, machinist, run, shared, systemd_version};

/// The settings of a machine, and that every line they name has the key that it is named for.
#[track_caller]
fn settings(name: &str) -> Vec<Value> {
    let output = machinist(["config", "show", name, "--all", "--json"]).ok().json();
    let rows = output.as_array().unwrap().clone();
    for row in &rows {
        let (Some(file), Some(line)) = (row["origin"]["file"].as_str(), row["origin"]["line"].as_u64()) else {
            continue;
        };
        let text = fs::read_to_string(file).unwrap();
        let text = text.lines().nth(usize::try_from(line).unwrap() - 1).unwrap().trim();
        let key = match row["section"].as_str().unwrap() {
            "Unit" | "Service" | "Scope" => row["key"].as_str().unwrap_or_default(),
            _ if row["origin"]["kind"] != "nspawn" => "ExecStart",
            _ if row["code"] == "implied" => "PrivateUsersOwnership",
            _ => row["key"].as_str().unwrap_or_default(),
        };
        assert!(text.starts_with(key), "{file}:{line} is {text:?}\n{row}");
    }
    rows
}

/// `value state code`, and the place as it is shown, of every row of a setting.
fn said(rows: &[Value], setting: &str) -> Vec<String> {
    rows.iter()
        .filter(|row| row["setting"] == setting)
        .map(|row| {
            let code = row["code"].as_str().map_or(String::new(), |code| format!(" {code}"));
            format!(
                "{} {}{code}",
                row["value"].as_str().unwrap(),
                row["state"].as_str().unwrap()
            )
        })
        .collect()
}

/// The value in force, which must be one.
#[track_caller]
fn holds(rows: &[Value], setting: &str) -> String {
    let mut all = rows
        .iter()
        .filter(|row| row["setting"] == setting && row["state"] == "in_force");
    let value = all
        .next()
        .unwrap_or_else(|| panic!("{setting} does not hold: {rows:#?}"));
    assert!(all.next().is_none(), "{setting} holds twice");
    value["value"].as_str().unwrap().to_owned()
}

fn origin<'a>(rows: &'a [Value], setting: &str) -> &'a Value {
    let held = rows
        .iter()
        .find(|row| row["setting"] == setting && row["state"] == "in_force");
    &held.unwrap()["origin"]
}

/// The links in a guest, as the kernel has them.
fn links(guest: &Guest) -> BTreeSet<String> {
    let leader = guest.leader().to_string();
    let links = run("nsenter", ["-t", &leader, "-n", "ip", "-j", "link"]).ok().json();
    let names = links.as_array().unwrap().iter();
    names
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .filter(|name| name == "host0" || name.starts_with("mv-"))
        .collect()
}

/// A field of /proc/LEADER/status.
fn status_of(guest: &Guest, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", guest.leader())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn has_capability(guest: &Guest, number: u32) -> bool {
    u64::from_str_radix(&status_of(guest, "CapBnd"), 16).unwrap() >> number & 1 == 1
}

fn host_network(guest: &Guest) -> bool {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    of(&guest.leader().to_string()) == of("1")
}

fn uid_base(guest: &Guest) -> u64 {
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
    map.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn command_line(guest: &Guest) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{}/cmdline", guest.property("MainPID"))).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn what_holds_is_what_systemd_has() {
    let _host = shared();
    let guest = Guest::busybox("shbase");
    let name = guest.name.as_str();
    guest.write_drop_in(
        "[Unit]\nAfter=basic.target\n[Service]\nTimeoutStopSec=2min 5s\nCPUWeight=33\nMemoryHigh=200M\nCPUQuota=50%\n\
         DeviceAllow=/dev/fuse r\nEnvironment=A=1 B=2\nKillSignal=SIGINT\nTasksMax=900\n",
    );
    let template = guest.property("FragmentPath");
    for running in [false, true] {
        if running {
            guest.start();
        }
        let rows = settings(name);
        // Each row of the unit comes from a file that systemd has read.
        let read: BTreeSet<String> = guest
            .property("DropInPaths")
            .split_whitespace()
            .map(str::to_owned)
            .chain([template.clone()])
            .collect();
        for row in rows
            .iter()
            .filter(|row| ["Unit", "Service"].contains(&row["section"].as_str().unwrap()))
        {
            let file = row["origin"]["file"].as_str();
            assert!(file.is_none_or(|file| read.contains(file)), "{row}");
            assert_ne!(row["state"], "pending", "{row}");
        }
        for key in [
            "KillMode",
            "Type",
            "Slice",
            "DevicePolicy",
            "TasksMax",
            "CPUWeight",
            "Restart",
            "OOMPolicy",
            "Delegate",
        ] {
            assert_eq!(holds(&rows, &format!("Service.{key}")), guest.property(key), "{key}");
        }
        assert_eq!(guest.property("TimeoutStopUSec"), "2min 5s");
        assert_eq!(guest.property("MemoryHigh"), (200 << 20).to_string());
        assert_eq!(guest.property("CPUQuotaPerSecUSec"), "500ms");
        assert_eq!(guest.property("KillSignal"), "2");
        for (setting, value) in [
            ("Service.TimeoutStopSec", "2min 5s"),
            ("Service.MemoryHigh", "200M"),
            ("Service.CPUQuota", "50%"),
            ("Service.KillSignal", "SIGINT"),
            ("Service.MemoryMax", "infinity"),
        ] {
            assert_eq!(holds(&rows, setting), value);
        }
        assert_eq!(
            said(&rows, "Service.TasksMax"),
            ["900 in_force", "16384 ignored overridden"]
        );
        assert_eq!(origin(&rows, "Service.TasksMax")["kind"], "drop-in");
        assert_eq!(origin(&rows, "Service.MemoryMax")["kind"], "default");
        assert_eq!(origin(&rows, "Service.KillMode")["kind"], "template");
        assert_eq!(origin(&rows, "Service.KillMode")["file"], template.as_str());
        let devices = guest.property("DeviceAllow");
        for row in said(&rows, "Service.DeviceAllow") {
            let device = row.strip_suffix(" in_force").unwrap();
            assert!(devices.lines().any(|line| line == device), "{device}: {devices}");
        }
        for key in ["After", "Wants", "Before"] {
            let has = guest.property(key);
            let has: BTreeSet<&str> = has.split_whitespace().collect();
            let rows = said(&rows, &format!("Unit.{key}"));
            assert!(!rows.is_empty());
            for row in rows {
                let unit = row.strip_suffix(" in_force").unwrap();
                // The template of 252 has dm-mod once, and dm_mod once.
                assert!(has.contains(unit), "{key}: {unit}");
            }
        }
        // The switches, each with the line of ExecStart=.
        for (setting, value) in [
            ("Exec.Boot", "yes"),
            ("Exec.LinkJournal", "try-guest"),
            ("Exec.PrivateUsers", "pick"),
            ("Network.VirtualEthernet", "yes"),
            ("--keep-unit", "yes"),
            ("--settings", "override"),
            ("--machine", name),
        ] {
            assert_eq!(holds(&rows, setting), value);
            assert_eq!(origin(&rows, setting)["kind"], "template", "{setting}");
        }
        assert_eq!(
            origin(&rows, "Exec.KillSignal")["file"],
            guest.settings().to_str().unwrap()
        );
        if running {
            assert_eq!(command_line(&guest).join(" "), holds(&rows, "Service.ExecStart"));
            assert!(links(&guest).contains("host0"));
            assert_ne!(uid_base(&guest), 0);
        }
    }
    machinist(["stop", name]).ok();
}

#[test]
fn the_table_is_read_by_people() {
    let _host = shared();
    let guest = Guest::busybox("shtext");
    let name = guest.name.as_str();
    guest.write_drop_in("[Service]\nTasksMax=900\n");
    let text = machinist(["config", "show", name]).ok();
    let table = text.stdout.as_str();
    assert!(
        table.starts_with("SETTING ") && table.contains(" settings listed.\n"),
        "{table}"
    );
    assert!(table.contains(&format!("{}:2 ", guest.settings().display())), "{table}");
    machinist(["config", "show", name, "--filter", "state=ignored", "--no-legend"])
        .ok()
        .stdout_has("Service.TasksMax")
        .stdout_has("ignored: ")
        .lacks("Exec.Boot");
    machinist(["config", "show", "no-such-machine"])
        .status(3)
        .stderr_has("no-such-machine");
    let several = machinist(["config", "show", name, name, "--columns", "machine,setting"]);
    several.ok().stdout_has(&format!("{name} "));
}

#[test]
fn a_file_takes_the_place_of_switches() {
    let _host = shared();
    let guest = Guest::busybox("shfile");
    let name = guest.name.as_str();
    let start = |text: &str| {
        guest.write_settings(&format!("[Exec]\nKillSignal=SIGUSR2\n{text}"));
        guest.start();
        settings(name)
    };
    let stop = || drop(machinist(["stop", name]).ok());

    let rows = start("[Network]\nPrivate=yes\n");
    assert_eq!(
        said(&rows, "Network.VirtualEthernet"),
        ["no in_force", "yes ignored overridden"]
    );
    assert_eq!(said(&rows, "Network.Private"), ["yes in_force"]);
    assert!(links(&guest).is_empty() && !host_network(&guest));
    stop();

    let rows = start("[Network]\nPort=tcp:18080:80\n");
    assert_eq!(said(&rows, "Network.VirtualEthernet"), ["yes in_force"]);
    assert!(links(&guest).contains("host0"));
    stop();

    let rows = start("[Network]\nVirtualEthernet=no\n");
    assert_eq!(
        said(&rows, "Network.VirtualEthernet"),
        ["no in_force", "yes ignored overridden"]
    );
    assert_eq!(said(&rows, "Network.Private"), ["no in_force"]);
    assert!(host_network(&guest));
    stop();

    // Who owns the files alone: there are no private users any more.
    let rows = start("[Files]\nPrivateUsersOwnership=off\n");
    assert_eq!(
        said(&rows, "Exec.PrivateUsers"),
        ["no in_force implied", "pick ignored overridden"]
    );
    assert_eq!(
        said(&rows, "Files.PrivateUsersOwnership"),
        ["off in_force", "auto ignored overridden"]
    );
    assert_eq!(uid_base(&guest), 0);
    stop();

    // cap_sys_time is 25, cap_net_raw 13.
    let rows =
        start("[Exec]\nCapability=CAP_SYS_TIME\nDropCapability=CAP_NET_RAW\nUser=a\nUser=root\nBoto=1\nMACVLAN=x\n");
    assert!(has_capability(&guest, 25) && !has_capability(&guest, 13));
    assert_eq!(said(&rows, "Exec.Capability"), ["CAP_SYS_TIME in_force"]);
    assert_eq!(said(&rows, "Exec.DropCapability"), ["CAP_NET_RAW in_force"]);
    assert_eq!(said(&rows, "Exec.User"), ["root in_force", "a ignored repeated-key"]);
    assert_eq!(said(&rows, "Exec.Boto"), ["1 ignored unknown-key"]);
    assert_eq!(said(&rows, "Exec.MACVLAN"), ["x ignored unknown-key"]);
    stop();

    // A key that only the newest know.
    let rows = start("[Exec]\nRestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK\n");
    let expected = if systemd_version() >= 261 {
        "in_force"
    } else {
        "ignored key-too-new"
    };
    let said = said(&rows, "Exec.RestrictAddressFamilies");
    assert!(
        said.iter().all(|row| row.ends_with(expected)) && !said.is_empty(),
        "{said:?}"
    );
    stop();
}

#[test]
fn the_first_file_is_read_and_beside_the_image_not_trusted() {
    let _host = shared();
    let guest = Guest::busybox("shside");
    let name = guest.name.as_str();
    fs::remove_file(guest.settings()).unwrap();
    let beside = guest.image().with_file_name(format!("{name}.nspawn"));
    let text =
        "[Exec]\nKillSignal=SIGUSR2\nCapability=CAP_SYS_TIME\nEnvironment=WHERE=beside\n[Network]\nPrivate=yes\n";
    fs::write(&beside, text).unwrap();
    guest.start();
    let rows = settings(name);
    assert_eq!(said(&rows, "Exec.Capability"), ["CAP_SYS_TIME ignored not-trusted"]);
    assert_eq!(
        said(&rows, "Network.Private"),
        ["yes in_force", "yes ignored not-trusted"]
    );
    assert_eq!(said(&rows, "Exec.Environment"), ["WHERE=beside in_force"]);
    assert!(!has_capability(&guest, 25) && links(&guest).contains("host0"));
    machinist(["stop", name]).ok();

    let runtime = Path::new("/run/systemd/nspawn").join(format!("{name}.nspawn"));
    fs::create_dir_all(runtime.parent().unwrap()).unwrap();
    fs::write(&runtime, "[Exec]\nKillSignal=SIGUSR2\nCapability=CAP_SYS_TIME\n").unwrap();
    guest.start();
    let rows = settings(name);
    assert_eq!(
        said(&rows, "Exec.Capability"),
        ["CAP_SYS_TIME in_force", "CAP_SYS_TIME ignored hidden-file"]
    );
    assert_eq!(said(&rows, "Exec.Environment"), ["WHERE=beside ignored hidden-file"]);
    assert!(has_capability(&guest, 25));
    machinist(["stop", name]).ok();
    fs::remove_file(&runtime).unwrap();

    // The command line may want the one, or none.
    for (switch, trusted) in [("trusted", true), ("no", false)] {
        guest.write_drop_in(&format!(
            "[Service]\nExecStart=\nExecStart=systemd-nspawn -q --keep-unit -bn --kill-signal=SIGUSR2 --settings={switch} -M %i\n"
        ));
        guest.start();
        let rows = settings(name);
        let expected = if trusted { "in_force" } else { "ignored settings-off" };
        assert_eq!(said(&rows, "Exec.Capability"), [format!("CAP_SYS_TIME {expected}")]);
        assert_eq!(has_capability(&guest, 25), trusted);
        // Here the command line wins.
        let expected = if trusted { "command-line" } else { "settings-off" };
        assert!(said(&rows, "Network.Private").contains(&format!("yes ignored {expected}")));
        assert!(said(&rows, "Exec.KillSignal").contains(&format!("SIGUSR2 ignored {expected}")));
        assert_eq!(holds(&rows, "Network.VirtualEthernet"), "yes");
        assert_eq!(origin(&rows, "Network.VirtualEthernet")["kind"], "drop-in");
        assert!(links(&guest).contains("host0"));
        assert_eq!(command_line(&guest).join(" "), holds(&rows, "Service.ExecStart"));
        machinist(["stop", name]).ok();
    }
    fs::remove_file(&beside).unwrap();
}

/// The table of keys is that of the systemd which runs here.
#[test]
fn keys_of_units_are_those_of_systemd() {
    let _host = shared();
    let dump = run("/usr/lib/systemd/systemd", ["--dump-configuration-items"])
        .ok()
        .stdout;
    for section in ["Unit", "Service"] {
        let begin = format!("[{section}]");
        let lines = dump.lines().skip_while(|line| *line != begin).skip(1);
        let has: BTreeSet<&str> = lines
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| line.split_once('='))
            .map(|(key, _)| key)
            .collect();
        let ours: BTreeSet<&str> = keys::names(section, systemd_version()).collect();
        let unknown: Vec<_> = has.difference(&ours).collect();
        let invented: Vec<_> = ours.difference(&has).collect();
        assert!(
            has.len() > 50 && unknown.is_empty() && invented.is_empty(),
            "{section}: {unknown:?} {invented:?}"
        );
    }
}

#[test]
fn commands_are_shown_with_their_prefixes_and_lines() {
    let _host = shared();
    let guest = Guest::busybox("cshook");
    let name = guest.name.as_str();
    guest.write_drop_in(
        "[Service]\n\
         ExecStartPre=/bin/false\n\
         ExecStartPre=\n\
         ExecStartPre=-/bin/echo %i ; +/bin/echo 'b c'\n\
         ExecStartPre=-/bin/echo 'open\n\
         ExecStartPre=@/bin/sh renamed -c :\n\
         ExecStartPre=:/bin/echo $HOME %%\n\
         ExecStartPre=!-/bin/true\n\
         ExecStopPost=-/bin/true last\n",
    );
    let loaded = guest.property("ExecStartPreEx");
    assert_eq!(loaded.matches("argv[]=").count(), 5, "{loaded}");
    let file = guest.drop_ins().join("50-test.conf");
    let shown = machinist(["config", "show", name, "--json"]).ok().json();
    let rows = shown.as_array().or_else(|| shown["settings"].as_array()).unwrap();
    let of = |key: &str| -> Vec<String> {
        let of_key = rows
            .iter()
            .filter(|row| row["key"] == key && row["origin"]["file"] == file.to_str().unwrap());
        let text = |row: &serde_json::Value| {
            let state = row["state"].as_str().unwrap();
            format!("{} {} {state}", row["origin"]["line"], row["value"].as_str().unwrap())
        };
        of_key.map(text).collect()
    };
    assert_eq!(
        of("ExecStartPre"),
        [
            "2 /bin/false ignored".to_owned(),
            format!("4 -/bin/echo {name} in_force"),
            "4 +/bin/echo 'b c' in_force".to_owned(),
            "5 -/bin/echo 'open ignored".to_owned(),
            "6 @/bin/sh renamed -c : in_force".to_owned(),
            "7 :/bin/echo '$HOME' % in_force".to_owned(),
            "8 -!/bin/true in_force".to_owned(),
        ]
    );
    assert!(of("ExecStopPost").contains(&"9 -/bin/true last in_force".to_owned()));
    // A command that was taken out of the file is still what systemd runs, as long as it has the unit in memory.
    guest.start();
    fs::write(&file, "[Service]\nExecStartPre=/bin/other\n").unwrap();
    machinist(["config", "show", name])
        .ok()
        .stdout_has("@/bin/sh renamed -c :");
}
