//! Images of containers as sources: made by umoci, brought to a registry and into archives by skopeo, kept by docker-registry, started by systemd-nspawn.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sources::{Work, is_nowhere};
use crate::support::{
    Guest, Running, There, agree, machinist, make_busybox_image, run, sh, shared, systemd_version, unique,
    unit_property, wait_until, write_program,
};

/// What the image starts: it tells how it was started, and ends when it is asked to.
const APP: &str = "#!/bin/sh
trap 'exit 0' TERM QUIT
echo \"$GREETING in $PWD as $(busybox id -u) with $# of '$1' and '$2'\" >/tmp/said
while :; do sleep 1 & wait $!; done
";

/// As systemd-nspawn asks it. Images of Debian and of Alpine have one.
const GETENT: &str = "#!/bin/sh
case $1 in
    passwd) exec /bin/busybox grep \"^$2:\" /etc/passwd ;;
    initgroups) echo \"$2\" ;;
esac
";

/// Makes the layout `images` with umoci: `app` in two layers, of which the upper hides something of the lower; `quit`, the same
/// for another signal; `init`, which boots; `none`, which starts nothing.
const MAKE: &str = r#"cd "$1"
    umoci init --layout images
    umoci new --image images:app
    umoci unpack --image images:app bundle
    cp -a tree/. bundle/rootfs/
    umoci repack --image images:app bundle
    rm -r bundle
    umoci unpack --image images:app bundle
    rm -r bundle/rootfs/old bundle/rootfs/deep
    mkdir bundle/rootfs/deep
    touch bundle/rootfs/deep/new
    umoci repack --image images:app bundle
    rm -r bundle
    umoci config --image images:app --config.entrypoint /usr/bin/app --config.cmd 'a b' --config.cmd "it's" \
        --config.env 'GREETING=hi there' --config.workingdir /srv/app --config.user www --config.exposedports 80/tcp
    umoci config --image images:app --tag quit --config.stopsignal SIGQUIT
    umoci config --image images:app --tag none --clear config.entrypoint --clear config.cmd
    umoci config --image images:app --tag init --clear config.entrypoint --clear config.cmd --config.cmd /bin/sh
    tar -C images -cf images.tar .
    skopeo copy --quiet --insecure-policy oci:images:app oci-archive:skopeo.tar:app
    skopeo copy --quiet --insecure-policy oci:images:app docker-archive:docker.tar:apps/app:1"#;

/// That directory, made once for all tests.
pub(crate) fn images() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let place = PathBuf::from(format!("/root/{}", unique("oci")));
        let tree = place.join("tree");
        make_busybox_image(&tree);
        for directory in ["deep", "old"] {
            fs::create_dir(tree.join(directory)).unwrap();
            fs::write(tree.join(directory).join("file"), "low").unwrap();
        }
        fs::write(
            tree.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(tree.join("etc/group"), "root:x:0:\nwww:x:33:\n").unwrap();
        write_program(&tree.join("usr/bin/app"), APP);
        write_program(&tree.join("usr/bin/getent"), GETENT);
        sh(MAKE, [&place]).ok();
        place
    })
}

fn source(ending: &str) -> String {
    format!("oci:{}/images{ending}", images().display())
}

/// What the program says of how it was started.
const SAID: &str = "hi there in /srv/app as 33 with 2 of 'a b' and 'it's'\n";

#[track_caller]
fn has_said(guest: &Guest) {
    let mut said = String::new();
    wait_until("the program has said how it was started", || {
        said = machinist(["exec", &guest.name, "--", "cat", "/tmp/said"]).any().stdout;
        said.ends_with('\n')
    });
    assert_eq!(said, SAID);
}

#[test]
fn an_image_of_an_application_is_made_started_and_stopped() {
    let _host = shared();
    let guest = Guest::new("app");
    let name = guest.name.as_str();
    machinist(["create", name, &source(":app"), "--start"])
        .ok()
        .stderr_has("unpacking layer 2 of 2")
        .stderr_has("nothing in it asks for an address");
    agree(name, There::Running);
    has_said(&guest);
    for gone in ["old", "deep/file"] {
        assert!(!guest.image().join(gone).exists(), "{gone} is there");
    }
    assert!(guest.image().join("deep/new").exists());
    let settings = fs::read_to_string(guest.settings()).unwrap();
    for line in [
        "# The image says that its program listens at 80/tcp: see Port= in [Network].",
        "ProcessTwo=yes",
        "KillSignal=SIGRTMIN+4",
        r#"Parameters=/bin/sh -c "trap '' HUP; exec "'"$@"' sh /usr/bin/app "a b" "it's""#,
        "Environment=\"GREETING=hi there\"",
        "User=www",
        "WorkingDirectory=/srv/app",
    ] {
        assert!(
            settings.lines().any(|found| found == line),
            "no {line:?} in\n{settings}"
        );
    }
    machinist(["config", "check", name]).ok();
    machinist(["stop", name]).ok().quicker_than(Duration::from_secs(20));
    guest.is_down();
    assert_eq!(unit_property(&guest.unit(), "Result"), "success");
    // By systemd alone, and again.
    run("systemctl", ["start", &guest.unit()]).ok();
    has_said(&guest);
    run("systemctl", ["stop", &guest.unit()])
        .ok()
        .quicker_than(Duration::from_secs(20));
    guest.is_down();
    // Another signal goes to the program itself, which is PID 1 then.
    let quits = Guest::new("quit");
    machinist(["create", &quits.name, &source(":quit"), "--start", "--network=host"]).ok();
    has_said(&quits);
    let first = machinist(["exec", &quits.name, "--", "cat", "/proc/1/cmdline"]).ok();
    assert!(first.stdout.contains("/usr/bin/app"), "{first:?}");
    machinist(["stop", &quits.name])
        .ok()
        .quicker_than(Duration::from_secs(20));
    quits.is_down();
}

#[test]
fn an_image_with_an_init_boots_and_one_with_nothing_is_refused() {
    let _host = shared();
    let guest = Guest::new("init");
    machinist(["create", &guest.name, &source(":init"), "--start"]).ok();
    agree(&guest.name, There::Running);
    let first = machinist(["exec", &guest.name, "--", "cat", "/proc/1/comm"]).ok();
    assert_eq!(first.stdout, "init\n", "{first:?}");
    machinist(["stop", &guest.name]).ok();
    guest.is_down();
    let none = Guest::new("none");
    let words = ["create", &none.name, &source(""), "--dry-run"];
    machinist(words)
        .status(1)
        .stderr_has("has several images: it has 'app', 'init', 'none' and 'quit'");
    is_nowhere(&none);
    machinist(["create", &none.name, &source(":app"), "--dry-run"])
        .ok()
        .stdout_has("choose the image for linux/");
    machinist(["create", &none.name, &source(":app"), "--arch=s390x"])
        .status(1)
        .stderr_has("is not for linux/s390x");
    is_nowhere(&none);
    for (option, message) in [
        ("--tls-verify=no", "--tls-verify is for docker://…"),
        ("--strip=1", "--strip is for tar archives"),
        ("--no-cache", "--no-cache is for debian:SUITE"),
    ] {
        machinist(["create", &none.name, &source(":app"), option])
            .status(2)
            .stderr_has(message);
    }
}

#[test]
fn a_command_runs_in_an_image_as_its_program_would() {
    let _host = shared();
    let name = unique("ociru");
    let script = "echo \"$GREETING in $PWD as $(busybox id -u)\"; exit 3";
    machinist([
        "run",
        &source(":app"),
        "--name",
        &name,
        "--network=host",
        "--",
        "sh",
        "-c",
        script,
    ])
    .status(3)
    .stdout_is("hi there in /srv/app as 33\n");
    agree(&name, There::Nowhere);
    // It is told what it starts by itself, too.
    let guest = Guest::named(name);
    let running = machinist(["run", &source(":app"), "--name", &guest.name]).spawn();
    has_said(&guest);
    // Where systemd reads again what it has written of the unit, it is the same: it may do so before it starts it.
    if systemd_version() >= 257 {
        run("systemctl", ["daemon-reload"]).ok();
        let unit = format!("machinist-run-{}.service", guest.name);
        let start = run("systemctl", ["show", "-p", "ExecStart", "--value", &unit])
            .ok()
            .stdout;
        assert!(start.contains("exec \"$@\"") && !start.contains("$$"), "{start}");
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().status, 0);
    agree(&guest.name, There::Nowhere);
    // Archives, with and without the name of what they are; the tag tells which of several.
    let file = |name: &str| format!("{}/{name}", images().display());
    let archive = file("images.tar");
    for source in [
        format!("oci-archive:{archive}:app"),
        format!("docker-archive:{archive}:app"),
        format!("oci-archive:{}:app", file("skopeo.tar")),
        format!("docker-archive:{}:apps/app:1", file("docker.tar")),
        format!("docker-archive:{}", file("docker.tar")),
        file("docker.tar"),
    ] {
        machinist(["run", &source, "--", "cat", "deep/new", "/etc/group"])
            .status(1)
            .stdout_is("root:x:0:\nwww:x:33:\n");
    }
    machinist(["run", &archive, "--", "true"])
        .status(125)
        .stderr_has("several images");
}

/// docker-registry, on this host.
struct Registry {
    port: u16,
    running: Option<Running>,
    work: Work,
}

/// How docker-registry serves, and to whom.
const SERVE: &str = r#"cd "$1"; port=$2
    echo 'me:HASH' >users
    cat >config.yml <<END
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $PWD/registry}}
http: {addr: 127.0.0.1:$port}
auth: {htpasswd: {realm: test, path: $PWD/users}}
END
"#;

/// Logs in to it, which leaves `auth.json`, and brings `images:app` there as `apps/app:1`.
const PUSH: &str = r#"cd "$1"; echo 'open sesame' |
        skopeo login --tls-verify=false --authfile auth.json --username me --password-stdin "127.0.0.1:$2"
    skopeo copy --quiet --insecure-policy --dest-tls-verify=false --authfile auth.json "oci:$3/images:app" \
        "docker://127.0.0.1:$2/apps/app:1""#;

/// Of `open sesame`, by bcrypt.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

impl Registry {
    fn start() -> Self {
        let work = Work::new("reg");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (directory, number) = (work.0.display().to_string(), port.to_string());
        sh(&SERVE.replace("HASH", HASH), [&directory, &number]).ok();
        let running = run("docker-registry", ["serve", &work.file("config.yml")]).spawn();
        wait_until("the registry listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        sh(PUSH, [directory, number, images().display().to_string()]).ok();
        let running = Some(running);
        Self { port, running, work }
    }

    fn image(&self) -> String {
        format!("docker://127.0.0.1:{}/apps/app:1", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::SIGKILL);
            running.wait();
        }
    }
}

#[test]
fn an_image_comes_from_a_registry_that_asks_who_we_are() {
    let _host = shared();
    let registry = Registry::start();
    let guest = Guest::new("reg");
    let name = guest.name.as_str();
    let image = registry.image();
    let create = |options: &[&str]| machinist([&["create", name, &image], options].concat());
    let known = |run: crate::support::Run| run.env("REGISTRY_AUTH_FILE", registry.work.file("auth.json"));
    create(&[]).status(1).stderr_has("--tls-verify=no");
    create(&["--tls-verify=no"])
        .status(1)
        .stderr_has("does not give the image to us (HTTP status 401)")
        .stderr_has("skopeo login");
    is_nowhere(&guest);
    machinist(["create", name, "docker://quay.io/a/b", "--tls-verify=no"])
        .status(1)
        .stderr_has("'quay.io' is not on this host");
    create(&["--dry-run"])
        .ok()
        .stdout_has("download the layers of it that are not kept");
    is_nowhere(&guest);
    known(create(&["--tls-verify=no", "--start"]))
        .ok()
        .stderr_has("downloading layer 1 of 2")
        .lacks("open sesame");
    agree(name, There::Running);
    has_said(&guest);
    // What is kept of it is not asked for again, and swept as other downloads are.
    let other = Guest::new("reg");
    known(machinist(["create", &other.name, &image, "--tls-verify=no"]))
        .ok()
        .stderr_has("using layer 1 of 2 that is kept")
        .lacks("downloading");
    let clean = machinist(["clean", "--all", "--dry-run"]).ok().stdout;
    assert!(clean.contains("download sha256:"), "{clean}");
    known(machinist([
        "run",
        &image,
        "--tls-verify=no",
        "--network=host",
        "--",
        "sh",
        "-c",
        "echo $GREETING",
    ]))
    .ok()
    .stdout_is("hi there\n");
    // A name, or a version, that it has not.
    let none = Guest::new("reg");
    for (wrong, message) in [
        (":2", "it has not the image (HTTP status 404)"),
        ("@sha256:12", "behind '@' is no sha256:HEX"),
    ] {
        let image = image.replace(":1", wrong);
        let status = if wrong == ":2" { 1 } else { 2 };
        known(machinist(["create", &none.name, &image, "--tls-verify=no"]))
            .status(status)
            .stderr_has(message);
        is_nowhere(&none);
    }
}
