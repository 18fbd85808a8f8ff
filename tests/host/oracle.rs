//! systemd is the oracle: the installed systemd-nspawn and `config check` refuse and ignore the same lines of the same files.
//!
//! systemd-nspawn is given a directory without /usr: it reads the settings, names the lines it does not like, and stops.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use machinist::nspawn::schema::KEYS;

use crate::support::{machinist, run, shared, systemd_version};

/// Files that are mutated, each this often.
const MUTANTS: usize = 30;

/// Values that some key takes, nearly takes, or takes in one version only; every key is given all of them.
const VALUES: &[&str] = &[
    "",
    "yes",
    "no",
    "On",
    "y",
    "T",
    "perhaps",
    "0",
    "1",
    "2",
    "-1",
    "+5",
    "-20",
    "40",
    "41",
    "1000",
    "1001",
    "-1000",
    "65535",
    "65536",
    "524288:65536",
    "0:65536",
    "65535:1",
    "4294967295",
    "4294967296",
    "0-4294967295",
    "010",
    "08",
    "0x1F",
    "0b11",
    " 7",
    "7 ",
    "1.5",
    "infinity",
    "1:2",
    "2:1",
    "1:",
    ":1",
    "1:2:",
    "1:2:3",
    "512M",
    "1G 512M",
    "1M 1G",
    "1.5M",
    "16E",
    "10s",
    "1min 20s",
    "5 parsecs",
    "50ms",
    "+19",
    "+20",
    "-21",
    "80",
    "tcp:80",
    "udp:53:5353",
    "tcp:80:",
    "sctp:80",
    "tcp:0",
    "80:65536",
    "TCP:80",
    " 80",
    "a",
    "web",
    "a.b-c",
    "-a",
    "a-",
    "a..b",
    "a_b",
    "Ä",
    "xxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxx",
    "xxxxxxxxxxxxx",
    "eth0",
    "eth0:lan",
    "eth0 eth1:lan",
    "eth0:",
    ":lan",
    "eth0:a:b",
    "eth%0",
    "all",
    "default",
    ".",
    "..",
    "123",
    "0x10",
    "/",
    "/a",
    "/a/../b",
    "/a/./b//c/",
    "/a//b",
    "/a/",
    "/a/.",
    "/./a",
    "/a/..",
    "/..a/b.",
    "/a:/b/../c",
    "/a:/b//c",
    "/a:/b/.",
    "/a//b:/c",
    "a/b",
    "/a:/b",
    "/a:b",
    "/a::/b",
    "a:b",
    "+/a:/b",
    "+a:/b",
    ":/a",
    ":/a:ro",
    "/a:/b:idmap,ro",
    "/a:/b:nonsense",
    "/a\\:b:/c",
    "/a:/b:/c:/d",
    "/a:/b:/c",
    "/a:",
    "::",
    ":",
    "+",
    "+/a",
    "/tmp:size=10M,mode=1777",
    "/tmp:nonsense",
    "/a b",
    "CAP_NET_ADMIN",
    "cap_chown CAP_KILL",
    "CAP_NONE",
    "CAP_CHOWN CAP_NONE",
    "NET_ADMIN",
    "41",
    "62",
    "63",
    "64",
    "SIGTERM",
    "TERM",
    "sigterm",
    "SIGRTMIN+3",
    "RTMIN+30",
    "SIGRTMIN+31",
    "RTMAX-2",
    "SIGFOO",
    "SIGSTKFLT",
    "65",
    "x86",
    "x86-64",
    "x86_64",
    "arm64",
    "0123456789abcdef0123456789abcdef",
    "01234567-89ab-cdef-0123-456789abcdef",
    "00000000000000000000000000000000",
    "0123456789abcdef0123456789abcde",
    "0123456789abcdef0123456789abcdeg",
    "pick",
    "identity",
    "managed",
    "self",
    "chown",
    "map",
    "auto",
    "foreign",
    "off",
    "host",
    "guest",
    "try-guest",
    "try-host",
    "copy",
    "bind",
    "symlink",
    "delete",
    "copy-host",
    "replace-stub",
    "bind-uplink",
    "state",
    "overlay",
    "AF_INET",
    "~AF_INET AF_UNIX",
    "AF_NONE",
    "none",
    "af_inet",
    "@mount",
    "~@mount bpf",
    "~",
    "nonsense_call",
    "A=b",
    "A",
    "A=b 'C=d e'",
    "'unbalanced",
    "\"two words\" three",
    "back\\\\slash",
    "a'b'c",
    "a\"b",
    "alice",
    "alice bob",
    "alice:bob",
    "al!ce",
    "/bin/sh",
    "0-3",
    "3-0",
    "0,2-4",
    "0-",
    "8191",
    "8192",
    "x",
    "1 x 2",
    "\u{7f}",
    "tab\tbed",
    "\u{fdd0}",
    "\u{1F600}",
];

/// What people and editors make of a file.
const TRAPS: &[&[u8]] = &[
    b"",
    b"\n",
    b" ",
    b"\\",
    b"=",
    b"[",
    b"[]",
    b"[Exec]",
    b"[Exec",
    b"Exec]\nBoot=yes\n",
    b"[ Exec ]\nBoot=yes\nNonsense=1\n",
    b"[exec]\nBoot=yes\n",
    b"[Exec] # comment\nBoot=yes\n",
    b"[Exec]\nBoot=yes # comment\n",
    b"[Exec]\nBoot yes\n",
    b"[Exec]\nBoot: yes\n",
    b"[Exec]\n=yes\n",
    b"[Exec]\n Boot = yes \n\tHostname\t=\tweb\t\n",
    b"[Exec]\nboot=yes\n",
    b"[Exec]\n;Boot=perhaps\n#Boot=perhaps\n  # Boot=perhaps\n",
    b"[Exec]\nBoot=\\\nperhaps\n",
    b"[Exec]\nBoot=\\\n# a comment\n  perhaps\nNonsense=1\n",
    b"[Exec]\nBoot=yes\\\n\nNonsense=1\n",
    b"[Exec]\nBoot=yes \\",
    b"[Exec]\nNonsense=yes \\\n",
    b"[Exec]\nNonsense=a\\\\\nNonsense=b\n",
    b"[Exec]\nNonsense=a\\\\\\\nNonsense=b\n",
    b"[Exec]\\\nNonsense=b\n",
    b"[Ex\\\nec]\nNonsense=b\n",
    b"Bo\\\not=yes\n",
    b"[Exec]\nBo\\\not=yes\nNo\\\nsense=1\n",
    b"\xef\xbb\xbf[Exec]\nNonsense=1\n",
    b"# c\n\xef\xbb\xbf[Exec]\nNonsense=1\n",
    b"\xef\xbb\xbf# c\n[Exec]\nNonsense=1\n",
    b"\xef\xbb\xbf\xef\xbb\xbf[Exec]\nNonsense=1\n",
    b"[Exec]\n\xef\xbb\xbfNonsense=1\n",
    b"\xff\xfe[\0E\0x\0e\0c\0]\0",
    b"[Exec]\r\nNonsense=1\r\n\r\nNonsense=2\r\n",
    b"[Exec]\rNonsense=1\rNonsense=2\r",
    b"[Exec]\n\rNonsense=1\n\rNonsense=2",
    b"[Exec]\nUser=a\0b\nNonsense=1\n",
    b"[Exec]\nNonsense=1\0Nonsense=2\0",
    b"[Exec]\nUser=\xe4\nNonsense=1\n",
    b"[Exec]\n# \xe4\nNonsense=1\n",
    b"[\xe4]\nNonsense=1\n",
    b"\xe4\n[Exec]\n",
    b"[Exec]\nUser=\xc0\x80\n",
    b"[Exec]\nUser=\xed\xa0\x80\n",
    b"[Exec]\nUser=\xef\xbf\xbf\n",
    b"[X-Mine]\nAnything=1\nnothing\n=x\n[Exec]\nX-Mine=1\nx-mine=2\n",
    b"[Exce]\nNonsense=1\nnothing\n[Exec]\nNonsense=2\n",
    b"[Service]\nMemoryMax=1G\n",
    b"[Exec]\nMemoryMax=1G\nDeviceAllow=/dev/fuse\nLoadCredential=a:b\nSlice=x.slice\n",
    b"Boot=yes\n[Exec]\nBoot=yes\n",
    b"text before\n[Exec]\nBoot=yes\n",
    b"[Exec][Files]\nBoot=yes\n",
    b"[Exec]]\nBoot=yes\n",
    b"[Ex*c]\nBoot=yes\n[Exec]\nNonsense=1\n",
    b"[Ex\"c]\nBoot=yes\n",
    b"[Ex\tc]\nBoot=yes\n",
    b"[]\nBoot=yes\n[Exec]\nNonsense=1\n",
    b"[Exec]\nBoot=yes\nProcessTwo=yes\n",
    b"[Exec]\nProcessTwo=yes\nBoot=yes\nBoot=no\nProcessTwo=no\n",
    b"[Exec]\nBoot=no\nBoot=yes\nBoot=no\nProcessTwo=no\n",
    b"[Network]\nPort=80\nPort=tcp:80:81\nPort=udp:80\nPort=81:80\n",
    b"[Network]\nPort=80\nPort=\nPort=80\n",
    b"[Exec]\nBoot=yes\n[Files]\n[Exec]\nNonsense=1\n",
    b"[Files]\nPrivateUsersChown=yes\nPrivateUsersOwnership=map\nPrivateUsersOwnership=foreign\n",
    b"[Exec]\nPrivateUsersOwnership=map\n[Files]\nHostname=a\n[Network]\nBoot=yes\n",
    b"[Exec]\nCapability=CAP_NONE\nCPUAffinity=0-99999\nNonsense=1\n",
    b"[Network]\nMACVLAN=eth%0\nNonsense=1\n",
    b"[Exec]\nEnvironment=A=b C\nParameters='a b' \"c\nParameters=a\\\n",
];

/// Before 258 this one number stands for no CPU at all: systemd takes the line, and it has no effect. It is not worth a
/// rule of its own.
const NOT_WORTH_A_RULE: &str = "CPUAffinity=4294967295";

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("64 bits") % sides.max(1)
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.roll(all.len())]
    }
}

/// One change of the kind that a slip of a finger, a bad editor or a merge makes.
fn mutate(text: &mut Vec<u8>, dice: &mut Dice) {
    const BITS: &[&[u8]] = &[
        b"\\",
        b"\\\n",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"=",
        b"[",
        b"]",
        b"#",
        b";",
        b" ",
        b"\t",
        b"'",
        b"\"",
        b":",
        b"~",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"x",
        b"0",
        b"[Exec]\n",
        b"[Network]\n",
        b"\n[Filse]\n",
        b"\nNonsense=1\n",
    ];
    let at = dice.roll(text.len() + 1);
    let line_start = text[..at].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let line_end = text[line_start..]
        .iter()
        .position(|&b| b == b'\n')
        .map_or(text.len(), |at| line_start + at + 1);
    let line = text[line_start..line_end].to_vec();
    match dice.roll(10) {
        0 | 1 => drop(text.splice(at..at, dice.pick(BITS).iter().copied())),
        2 => drop(text.splice(at..(at + 1 + dice.roll(3)).min(text.len()), [])),
        3 => drop(text.splice(line_start..line_start, line)),
        4 => drop(text.splice(line_start..line_end, [])),
        5 => {
            // Lines change their places, and so may change their sections.
            text.splice(line_start..line_end, []);
            let to = dice.roll(text.len() + 1);
            let to = text[..to].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            text.splice(to..to, line);
        }
        6 => text.truncate(at),
        7 => {
            let swapped = if line.iter().any(u8::is_ascii_uppercase) {
                line.to_ascii_lowercase()
            } else {
                line.to_ascii_uppercase()
            };
            text.splice(line_start..line_end, swapped);
        }
        8 => {
            let key = dice.pick(&KEYS);
            let new = format!("{}={}\n", key.name, dice.pick(VALUES));
            text.splice(line_start..line_start, new.into_bytes());
        }
        _ => {
            if let Some(equals) = line.iter().position(|&b| b == b'=') {
                let value = dice.pick(VALUES).as_bytes().iter().copied();
                let end = line_end - usize::from(line.ends_with(b"\n"));
                text.splice(line_start + equals + 1..end, value);
            }
        }
    }
}

/// Names and texts, the same in every run.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for (number, trap) in TRAPS.iter().enumerate() {
        files.push((format!("trap-{number}"), trap.to_vec()));
    }
    // A bad value can be fatal: the values behind it are asked for in files of their own.
    for key in &KEYS {
        let lines: Vec<String> = VALUES.iter().map(|value| format!("{}={value}\n", key.name)).collect();
        let fatal = ["CPUAffinity", "Interface", "MACVLAN", "IPVLAN"].contains(&key.name);
        for (number, lines) in lines.chunks(if fatal { 1 } else { VALUES.len() }).enumerate() {
            let text = format!("[{}]\n{}", key.section, lines.concat());
            files.push((format!("key-{}-{number}", key.name.to_lowercase()), text.into_bytes()));
        }
    }
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut examples: Vec<PathBuf> = fs::read_dir("/opt/machinist/src/nspawn-examples")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    examples.sort();
    for example in examples {
        let text = fs::read(&example).unwrap();
        let stem = example.file_stem().unwrap().to_string_lossy().into_owned();
        for number in 0..MUTANTS {
            let mut mutant = text.clone();
            for _ in 0..number.min(6) {
                mutate(&mut mutant, &mut dice);
            }
            files.push((format!("{stem}-{number}"), mutant));
        }
    }
    files
}

/// The lines that the installed systemd-nspawn complains about, with what it says.
fn ask_nspawn(directory: &Path, name: &str) -> BTreeMap<u64, String> {
    let root = directory.join("root");
    let output = run(
        "systemd-nspawn",
        [
            "-q",
            "--register=no",
            "--keep-unit",
            "--settings=trusted",
            "-M",
            name,
            "-D",
        ],
    )
    .args([&root])
    .env("SYSTEMD_LOG_TARGET", "console")
    .any();
    assert_ne!(output.status, 0, "a directory without /usr was booted\n{output:?}");
    let file = format!("{}:", directory.join(format!("{name}.nspawn")).display());
    let mut lines = BTreeMap::new();
    for said in output.stderr.lines().filter_map(|line| line.split_once(&file)) {
        if let Some((number, reason)) = said.1.split_once(": ")
            && let Ok(number) = number.parse()
        {
            lines.entry(number).or_insert_with(|| reason.to_owned());
        }
    }
    lines
}

#[test]
fn systemd_and_config_check_ignore_the_same_lines() {
    let _host = shared();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir(directory.path().join("root")).unwrap();
    let corpus = corpus();
    assert!(corpus.len() >= 500, "only {} files", corpus.len());
    let path = |name: &str| directory.path().join(format!("{name}.nspawn"));
    for (name, text) in &corpus {
        fs::write(path(name), text).unwrap();
    }
    let version = systemd_version().to_string();
    let words = ["config", "check", "--json", "--systemd-version", &version];
    let checked = machinist(words).args(corpus.iter().map(|(name, _)| path(name))).any();
    let mut ours: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for finding in checked.json().as_array().unwrap() {
        // These systemd-nspawn finds later, if at all, and names no line.
        let without_line = ["conflict", "parameters-alone", "not-trusted"].contains(&finding["code"].as_str().unwrap());
        if finding["severity"] == "error" && !without_line {
            let file = Path::new(finding["file"].as_str().unwrap()).file_stem().unwrap();
            let lines = ours.entry(file.to_string_lossy().into_owned()).or_default();
            lines.insert(
                finding["systemd_line"].as_u64().unwrap(),
                finding["message"].as_str().unwrap().to_owned(),
            );
        }
    }
    let mut disagreements = Vec::new();
    let mut complained = 0;
    for (name, text) in &corpus {
        let (systemd, machinist) = (
            ask_nspawn(directory.path(), name),
            ours.remove(name).unwrap_or_default(),
        );
        complained += systemd.len();
        let lines: BTreeSet<u64> = systemd.keys().chain(machinist.keys()).copied().collect();
        for line in lines
            .into_iter()
            .filter(|line| systemd.contains_key(line) != machinist.contains_key(line))
        {
            let at = usize::try_from(line).unwrap().saturating_sub(1);
            let shown = text.split(|&b| b == b'\n').nth(at).unwrap_or_default();
            if shown == NOT_WORTH_A_RULE.as_bytes() {
                continue;
            }
            disagreements.push(format!(
                "{name}:{line}: {:?}\n  systemd: {:?}\n  machinist: {:?}",
                String::from_utf8_lossy(shown),
                systemd.get(&line),
                machinist.get(&line)
            ));
        }
    }
    assert!(
        complained > 1000,
        "systemd-nspawn complained about {complained} lines only"
    );
    assert!(
        disagreements.is_empty(),
        "{} disagreements\n{}",
        disagreements.len(),
        disagreements.join("\n")
    );
}

#[test]
fn systemd_and_config_check_refuse_the_same_combinations() {
    let _host = shared();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut disagreements = Vec::new();
    for text in [
        "",
        "[Network]\nBridge=br0\nZone=lab\n",
        "[Network]\nBridge=br0\n",
        "[Network]\nPort=80\n",
        "[Network]\nPrivate=yes\nPort=80\n",
        "[Network]\nPrivate=no\nPort=80\n",
        "[Network]\nVirtualEthernet=no\nPort=80\n",
        "[Network]\nMACVLAN=eth0\nPort=80\n",
        "[Network]\nPrivate=no\nBridge=br0\nPort=80\n",
        "[Network]\nNamespacePath=/run/netns/x\nBridge=br0\n",
        "[Network]\nNamespacePath=/run/netns/x\nVirtualEthernet=yes\n",
        "[Network]\nNamespacePath=/run/netns/x\nMACVLAN=eth0\n",
        "[Files]\nReadOnly=yes\nPrivateUsersOwnership=chown\n",
        "[Files]\nReadOnly=no\nPrivateUsersOwnership=chown\n",
        "[Files]\nVolatile=state\nPrivateUsersOwnership=chown\n",
        "[Files]\nVolatile=yes\nPrivateUsersChown=yes\n",
        "[Files]\nVolatile=yes\nPrivateUsersChown=no\n",
        "[Exec]\nPrivateUsers=pick\n[Files]\nReadOnly=yes\n",
        "[Exec]\nPrivateUsers=pick\n[Files]\nVolatile=state\nPrivateUsersOwnership=map\n",
        "[Exec]\nPrivateUsers=yes\n[Files]\nReadOnly=yes\n",
        "[Exec]\nPrivateUsers=524288\n[Files]\nReadOnly=yes\n",
        "[Exec]\nPrivateUsers=no\n[Files]\nBindUser=root\n",
        "[Exec]\nEphemeral=yes\nLinkJournal=host\n",
        "[Exec]\nEphemeral=yes\nLinkJournal=guest\n",
        "[Exec]\nEphemeral=yes\nLinkJournal=try-host\n",
        "[Exec]\nAmbientCapability=CAP_CHOWN\n",
        "[Exec]\nBoot=no\nAmbientCapability=CAP_CHOWN\n",
        "[Exec]\nProcessTwo=yes\nAmbientCapability=CAP_CHOWN\n",
        "[Exec]\nProcessTwo=yes\nAmbientCapability=all\n",
    ] {
        // In /etc it is trusted, as it is not beside the image.
        let name = crate::support::unique("combi");
        let file = Path::new(crate::support::SETTINGS).join(format!("{name}.nspawn"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        let template = ["--boot", "--network-veth", "-U", "--settings=override"];
        let output = run("systemd-nspawn", ["-q", "--register=no", "--keep-unit"])
            .args(template)
            .args(["-M", &name, "-D", root.to_str().unwrap()])
            .env("SYSTEMD_LOG_TARGET", "console")
            .any();
        // It looks into the directory when it is content with the settings.
        let refused = !output.stderr.contains("Refusing.");
        let findings = machinist(["config", "check", "--json", file.to_str().unwrap()])
            .any()
            .json();
        fs::remove_file(&file).unwrap();
        let told = findings
            .as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["code"] == "conflict");
        let unknown = findings
            .as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["code"] == "key-too-new");
        if told != refused && !unknown {
            disagreements.push(format!("{text}{findings}\n{output:?}"));
        }
    }
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n\n"));
}
