//! Commands with exact expectations, machines that vanish with their guard, and systemd's own answers.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Where systemd looks for images.
pub(crate) const MACHINES: &str = "/var/lib/machines";
/// The administrator's trusted settings.
pub(crate) const SETTINGS: &str = "/etc/systemd/nspawn";
/// How long a condition of systemd's is waited for: the machine under the host may be slow, and one has stood still for 45 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// How long a command may take before it counts as hanging.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// The suite of the host that we are in.
pub(crate) fn suite() -> &'static str {
    static SUITE: OnceLock<String> = OnceLock::new();
    SUITE.get_or_init(|| match std::env::var("MACHINIST_HOST_SUITE") {
        Ok(suite) if ["bookworm", "trixie", "forky"].contains(&suite.as_str()) => suite,
        _ => panic!("these tests change the host that they run on: use `make check`, which boots a disposable one"),
    })
}

/// Tests share the host; those that change it for all others have it to themselves. Poison is no matter: each test
/// cleans up after itself.
static HOST: RwLock<()> = RwLock::new(());

/// The host as most tests use it.
pub(crate) fn shared() -> RwLockReadGuard<'static, ()> {
    suite();
    HOST.read().unwrap_or_else(PoisonError::into_inner)
}

/// The host for a test that gives machines priorities: these are of all machines, and each change of one may write files of
/// any other that has one.
pub(crate) fn with_priorities() -> impl Sized {
    static PRIORITIES: Mutex<()> = Mutex::new(());
    let host = shared();
    (PRIORITIES.lock().unwrap_or_else(PoisonError::into_inner), host)
}

/// The host for one test alone.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    suite();
    HOST.write().unwrap_or_else(PoisonError::into_inner)
}

/// The version of the systemd that runs.
pub(crate) fn systemd_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let said = run("systemctl", ["--version"]).ok().stdout;
        said.split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("a version number")
    })
}

/// A name that no other test has, short enough for an interface name.
pub(crate) fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{stem}-{:x}{:02x}",
        std::process::id() % 0xfff,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Waits until `condition` holds; what is waited for completes the sentence "timed out waiting until …".
#[track_caller]
pub(crate) fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, condition), "timed out waiting until {what}");
}

/// Whether `condition` holds before `limit` is over.
pub(crate) fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Asserts that `condition` holds for all of `duration`: for what must not happen there is nothing to wait for.
#[track_caller]
pub(crate) fn stays(what: &str, duration: Duration, mut condition: impl FnMut() -> bool) {
    assert!(
        !holds_within(duration, || !condition()),
        "it did not stay so that {what}"
    );
}

// Commands.

/// A command to run.
pub(crate) struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

/// `machinist` with arguments.
pub(crate) fn machinist<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    run("machinist", args)
}

/// Any program with arguments.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Run {
    let mut command = Command::new(program);
    // What the caller's shell says must not change what is printed.
    command.args(args).env_remove("NO_COLOR").env_remove("SUDO_UID");
    Run {
        command,
        stdin: None,
        limit: COMMAND_LIMIT,
    }
}

/// A shell script; `$1`… are the arguments.
pub(crate) fn sh<S: AsRef<OsStr>>(script: &str, args: impl IntoIterator<Item = S>) -> Run {
    let mut run = run("bash", ["-euc", script, "bash"]);
    run.command.args(args);
    run
}

impl Run {
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Kills it, and fails the test, if it takes longer.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it in the background.
    pub(crate) fn spawn(mut self) -> Running {
        let stdin = if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = shown(&self.command);
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            // A program that does not read all of it is no failure of the test.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        let out = child.stdout.take().expect("a pipe");
        let err = child.stderr.take().expect("a pipe");
        let (stdout, stderr) = (Heard::from(out), Heard::from(err));
        Running {
            child,
            shown,
            stdout,
            stderr,
            limit: self.limit,
            began: Instant::now(),
        }
    }

    /// Runs it, whatever its exit status.
    #[track_caller]
    pub(crate) fn any(self) -> Output {
        self.spawn().wait()
    }

    /// Runs it and demands this exit status.
    #[track_caller]
    pub(crate) fn status(self, wanted: i32) -> Output {
        let output = self.any();
        assert_eq!(output.status, wanted, "the wrong exit status\n{output:?}");
        output
    }

    /// Runs it and demands that it succeeds.
    #[track_caller]
    pub(crate) fn ok(self) -> Output {
        self.status(0)
    }
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let _ = write!(text, " {}", shell_words::quote(&arg.to_string_lossy()));
    }
    text
}

/// What comes from a pipe, line by line, while it is read.
struct Heard {
    text: Arc<Mutex<String>>,
    reader: thread::JoinHandle<()>,
}

impl Heard {
    fn from(pipe: impl std::io::Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let reader = thread::spawn({
            let text = text.clone();
            move || {
                let (mut pipe, mut line) = (BufReader::new(pipe), Vec::new());
                while pipe.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                    text.lock().expect("no panic").push_str(&String::from_utf8_lossy(&line));
                    line.clear();
                }
            }
        });
        Self { text, reader }
    }

    /// Waits for its end.
    fn all(self) -> String {
        let _ = self.reader.join();
        std::mem::take(&mut *self.text.lock().expect("no panic"))
    }
}

/// A command that runs in the background.
pub(crate) struct Running {
    child: Child,
    shown: String,
    stdout: Heard,
    stderr: Heard,
    limit: Duration,
    began: Instant,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process number")
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        // It may be gone already: then its status tells.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal);
    }

    /// Whether one of its streams has this in a line that is complete.
    pub(crate) fn has_said(&self, text: &str) -> bool {
        [&self.stdout, &self.stderr]
            .iter()
            .any(|heard| heard.text.lock().expect("no panic").contains(text))
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("waiting for a child").is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Output {
        let hangs = !holds_within(self.limit.saturating_sub(self.began.elapsed()), || self.has_ended());
        if hangs {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("waiting for a child");
        let took = self.began.elapsed();
        assert!(!hangs, "{} did not end within {:?}", self.shown, self.limit);
        Output {
            // As a shell says it.
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            shown: self.shown,
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
            took,
        }
    }
}

/// What came of a command.
pub(crate) struct Output {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    shown: String,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "command: {}\nexit status: {} after {:?}\n",
            self.shown, self.status, self.took
        )?;
        write!(f, "--- stdout\n{}--- stderr\n{}---", self.stdout, self.stderr)
    }
}

impl Output {
    #[track_caller]
    pub(crate) fn stdout_has(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?} on stdout\n{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn stdout_is(self, text: &str) -> Self {
        assert_eq!(self.stdout, text, "the wrong stdout\n{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn stderr_has(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} on stderr\n{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn stderr_is(self, text: &str) -> Self {
        assert_eq!(self.stderr, text, "the wrong stderr\n{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn lacks(self, text: &str) -> Self {
        assert!(
            !self.stdout.contains(text) && !self.stderr.contains(text),
            "there is {text:?}\n{self:?}"
        );
        self
    }

    /// Demands an error's first line, and a hint in which `hint` stands.
    #[track_caller]
    pub(crate) fn fails_with(self, message: &str, hint: &str) -> Self {
        let first = self
            .stderr
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_default();
        assert_eq!(first, format!("error: {message}"), "the wrong error\n{self:?}");
        let hinted = self
            .stderr
            .lines()
            .any(|line| line.starts_with("hint: ") && line.contains(hint));
        assert!(hinted, "no hint with {hint:?}\n{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn quicker_than(self, limit: Duration) -> Self {
        assert!(self.took < limit, "it took longer than {limit:?}\n{self:?}");
        self
    }

    /// stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON on stdout: {error}\n{self:?}"))
    }

    /// stderr as a JSON error.
    #[track_caller]
    pub(crate) fn json_error(&self) -> Value {
        let parsed: Option<Value> = self.stderr.lines().find_map(|line| serde_json::from_str(line).ok());
        let error = parsed.and_then(|value| value.get("error").cloned());
        error.unwrap_or_else(|| panic!("no JSON error on stderr\n{self:?}"))
    }
}

// systemd's own answers.

/// A property of a unit, by `systemctl show`.
#[track_caller]
pub(crate) fn unit_property(unit: &str, property: &str) -> String {
    let asked = || {
        let said = run("systemctl", ["show", "--value", "-p", property, "--", unit]).ok();
        said.stdout.trim_end().to_owned()
    };
    if property == "NeedDaemonReload" {
        // While another test enables a machine, systemd says it of all units, until the reload that follows.
        holds_within(Duration::from_secs(5), || asked() == "no");
    }
    asked()
}

/// What machined has of a machine, by `machinectl show`; `None` if it is not registered.
pub(crate) fn machine_property(name: &str, property: &str) -> Option<String> {
    let output = run("machinectl", ["show", name, "-p", property, "--value"]).any();
    (output.status == 0).then(|| output.stdout.trim_end().to_owned())
}

fn manager_call(method: &str) -> Vec<Value> {
    const PATH: &str = "/org/freedesktop/machine1";
    const NAME: &str = "org.freedesktop.machine1";
    let interface = format!("{NAME}.Manager");
    let reply = run("busctl", ["--json=short", "call", NAME, PATH, &interface, method])
        .ok()
        .json();
    reply["data"][0].as_array().cloned().expect("a list of machined's")
}

fn names(rows: &[Value]) -> BTreeSet<String> {
    rows.iter()
        .filter_map(|row| row[0].as_str())
        .filter(|name| *name != ".host")
        .map(str::to_owned)
        .collect()
}

/// The names of all registered machines, by machined.
pub(crate) fn machines_of_machined() -> BTreeSet<String> {
    names(&manager_call("ListMachines"))
}

/// The names of all images, by machined.
pub(crate) fn images_of_machined() -> BTreeSet<String> {
    names(&manager_call("ListImages"))
}

/// The names in a table of ours.
#[track_caller]
pub(crate) fn names_of_machinist<const N: usize>(args: [&str; N]) -> BTreeSet<String> {
    let rows = machinist(args).ok().json();
    let rows = rows.as_array().expect("an array");
    rows.iter()
        .map(|row| row["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// What machinectl and machinist both must say of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum There {
    /// An image, and registered.
    Running,
    /// An image only.
    Stopped,
    /// Registered from somewhere that is no image.
    WithoutImage,
    /// Neither.
    Nowhere,
}

/// Asserts that machined and machinist agree about what exists under `name`.
#[track_caller]
pub(crate) fn agree(name: &str, there: There) {
    let running = matches!(there, There::Running | There::WithoutImage);
    let image = matches!(there, There::Running | There::Stopped);
    assert_eq!(
        machines_of_machined().contains(name),
        running,
        "machined: is '{name}' registered?"
    );
    assert_eq!(
        images_of_machined().contains(name),
        image,
        "machined: is there an image '{name}'?"
    );
    assert_eq!(
        names_of_machinist(["list", "--json"]).contains(name),
        running,
        "machinist list: '{name}'"
    );
    assert_eq!(
        names_of_machinist(["images", "--json"]).contains(name),
        image,
        "machinist images: '{name}'"
    );
    let all = names_of_machinist(["list", "-a", "--json"]);
    assert_eq!(
        all.contains(name),
        there != There::Nowhere,
        "machinist list -a: '{name}'"
    );
}

/// The fields of the newest journal entry that matches, by `journalctl -o json`.
pub(crate) fn newest_entry(matches: &[String]) -> Option<Value> {
    run("journalctl", ["--sync"]).any();
    let output = run(
        "journalctl",
        ["-q", "-o", "json", "-n", "1"]
            .iter()
            .map(|s| (*s).to_owned())
            .chain(matches.iter().cloned()),
    )
    .ok();
    serde_json::from_str(output.stdout.trim_end()).ok()
}

// Machines.

/// The unit of a machine.
pub(crate) fn unit_of(name: &str) -> String {
    format!("systemd-nspawn@{name}.service")
}

/// A machine of one test: whatever there is of it goes when the guard does, by systemctl and rm.
pub(crate) struct Guest {
    pub(crate) name: String,
}

impl Guest {
    /// A guard for a name: nothing is made.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// A guard for a new name: nothing is made.
    pub(crate) fn new(stem: &str) -> Self {
        Self::named(unique(stem))
    }

    /// A small image of busybox that powers off when told to.
    pub(crate) fn busybox(stem: &str) -> Self {
        let guest = Self::new(stem);
        make_busybox_image(&guest.image());
        guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
        guest
    }

    /// The same, deaf to every request: systemd-nspawn asks by a signal that busybox ignores.
    pub(crate) fn deaf(stem: &str) -> Self {
        let guest = Self::new(stem);
        make_busybox_image(&guest.image());
        guest
    }

    /// A real Debian, from the cache of the one bootstrap of this run.
    pub(crate) fn debian(stem: &str) -> Self {
        let guest = Self::new(stem);
        create_debian(&guest.name, &[]);
        guest
    }

    pub(crate) fn image(&self) -> PathBuf {
        Path::new(MACHINES).join(&self.name)
    }

    pub(crate) fn unit(&self) -> String {
        unit_of(&self.name)
    }

    pub(crate) fn settings(&self) -> PathBuf {
        Path::new(SETTINGS).join(format!("{}.nspawn", self.name))
    }

    pub(crate) fn drop_ins(&self) -> PathBuf {
        PathBuf::from(format!("/etc/systemd/system/{}.d", self.unit()))
    }

    /// Where systemd keeps its limits: those that last, and those of this boot.
    pub(crate) fn limits(&self) -> [PathBuf; 2] {
        ["/etc", "/run"].map(|root| PathBuf::from(format!("{root}/systemd/system.control/{}.d", self.unit())))
    }

    pub(crate) fn write_settings(&self, text: &str) {
        fs::create_dir_all(SETTINGS).expect("making the settings directory");
        fs::write(self.settings(), text).expect("writing settings");
    }

    pub(crate) fn write_drop_in(&self, text: &str) {
        fs::create_dir_all(self.drop_ins()).expect("making a directory for drop-ins");
        fs::write(self.drop_ins().join("50-test.conf"), text).expect("writing a drop-in");
        run("systemctl", ["daemon-reload"]).ok();
    }

    /// Starts it by machinist.
    #[track_caller]
    pub(crate) fn start(&self) -> &Self {
        machinist(["start", &self.name]).ok();
        self
    }

    #[track_caller]
    pub(crate) fn property(&self, property: &str) -> String {
        unit_property(&self.unit(), property)
    }

    #[track_caller]
    pub(crate) fn leader(&self) -> i32 {
        let leader =
            machine_property(&self.name, "Leader").unwrap_or_else(|| panic!("'{}' is not registered", self.name));
        leader.parse().expect("a process number")
    }

    /// A command in all namespaces of the guest.
    pub(crate) fn inside<const N: usize>(&self, command: [&str; N]) -> Run {
        let leader = self.leader().to_string();
        let mut run = run("nsenter", ["-t", &leader, "-a", "--"]);
        run.command.args(command).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        run
    }

    /// Asserts that it is down, and that nothing of its run is left.
    #[track_caller]
    pub(crate) fn is_down(&self) {
        let state = self.property("ActiveState");
        assert!(
            ["inactive", "failed"].contains(&state.as_str()),
            "unit of '{}' is {state}",
            self.name
        );
        assert_eq!(
            machine_property(&self.name, "State"),
            None,
            "'{}' is still registered",
            self.name
        );
        let export = format!("/run/systemd/nspawn/unix-export/{}", self.name);
        let mounts = fs::read_to_string("/proc/self/mounts").expect("reading mounts");
        assert!(!mounts.contains(&format!(" {export} ")), "{export} is still mounted");
        let cgroup = format!("/sys/fs/cgroup/machine.slice/{}", self.unit());
        assert!(!Path::new(&cgroup).exists(), "{cgroup} is still there");
        let links = run("ip", ["-j", "link"]).ok().stdout;
        assert!(
            !links.contains(&format!("\"ve-{}\"", self.name)),
            "the link of '{}' is still there",
            self.name
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let unit = self.unit();
        if thread::panicking() {
            eprintln!("--- journal of {unit}");
            eprintln!(
                "{}",
                run(
                    "journalctl",
                    ["--no-pager", "-n", "25", "-o", "short-precise", "-u", &unit]
                )
                .any()
                .stdout
            );
        }
        // A machine in a scope is registered under another unit.
        if let Some(other) = machine_property(&self.name, "Unit").filter(|other| *other != unit) {
            run("systemctl", ["kill", "-s", "KILL", &other]).any();
        }
        run("systemctl", ["thaw", &unit]).any();
        run("systemctl", ["kill", "-s", "KILL", &unit]).any();
        run("systemctl", ["stop", &unit]).any();
        run("systemctl", ["reset-failed", &unit]).any();
        run(
            "umount",
            ["-l", &format!("/run/systemd/nspawn/unix-export/{}", self.name)],
        )
        .any();
        let _ = fs::remove_file(self.settings());
        // systemd-nspawn leaves its lock.
        let _ = fs::remove_file(Path::new(MACHINES).join(format!(".#{}.lck", self.name)));
        let _ = fs::remove_file(format!("/etc/systemd/system/machines.target.wants/{unit}"));
        let mut drop_ins = self.limits().to_vec();
        drop_ins.push(self.drop_ins());
        drop_ins.retain(|directory| fs::remove_dir_all(directory).is_ok());
        if self.unmount() | !drop_ins.is_empty() {
            run("systemctl", ["daemon-reload"]).any();
        }
        for image in [self.image(), self.image().with_file_name(format!("{}.raw", self.name))] {
            if fs::symlink_metadata(&image).is_ok() && run("rm", ["-rf", &image.to_string_lossy()]).any().status != 0 {
                run("chattr", ["-R", "-f", "-i", &image.to_string_lossy()]).any();
                run("rm", ["-rf", &image.to_string_lossy()]).any();
            }
        }
    }
}

impl Guest {
    /// Takes down what mounts its image, if anything does: whether it did.
    fn unmount(&self) -> bool {
        let place = format!("Where={}\n", self.image().display());
        let units = fs::read_dir("/etc/systemd/system").into_iter().flatten().flatten();
        let mounts = units.filter(|entry| entry.file_name().to_string_lossy().ends_with(".mount"));
        let ours: Vec<PathBuf> = mounts
            .map(|entry| entry.path())
            .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&place)))
            .collect();
        for unit in &ours {
            let name = unit.file_name().unwrap_or_default().to_string_lossy();
            // Who looks through all images has each of them open for a moment.
            holds_within(PATIENCE, || run("systemctl", ["stop", &name]).any().status == 0);
            let _ = fs::remove_file(unit);
        }
        !ours.is_empty()
    }
}

/// Has a unit that is no machine's of its own boot an image, as people do by hand.
#[track_caller]
pub(crate) fn nspawn_in(unit: &str, image: &Path, name: &str, options: &[&str]) {
    let image = image.to_string_lossy();
    let words = [
        "-q",
        "--unit",
        unit,
        "systemd-nspawn",
        "-q",
        "-b",
        "-D",
        &image,
        "-M",
        name,
    ];
    run("systemd-run", [&words, options].concat()).ok();
}

/// A tree that boots at once: busybox as PID 1, and what systemd-nspawn and machined look for.
pub(crate) fn make_busybox_image(path: &Path) {
    for directory in [
        "bin", "sbin", "etc", "usr/bin", "usr/lib", "proc", "sys", "dev", "run", "tmp", "root", "var/log",
    ] {
        fs::create_dir_all(path.join(directory)).expect("making a directory of an image");
    }
    let busybox = path.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("copying busybox");
    for (link, target) in [
        ("bin/sh", "busybox"),
        ("bin/sleep", "busybox"),
        ("bin/cat", "busybox"),
        ("bin/ip", "busybox"),
        ("bin/true", "busybox"),
        ("bin/hostname", "busybox"),
        ("sbin/init", "../bin/busybox"),
        ("etc/os-release", "../usr/lib/os-release"),
    ] {
        symlink(target, path.join(link)).expect("linking an applet");
    }
    fs::write(path.join("etc/inittab"), "::sysinit:/bin/true\n").expect("writing inittab");
    fs::write(
        path.join("usr/lib/os-release"),
        "ID=busybox\nVERSION_ID=1.0\nPRETTY_NAME=\"BusyBox 1.0\"\n",
    )
    .expect("writing os-release");
}

/// A small filesystem that is mounted somewhere until this is dropped.
pub(crate) struct Disk {
    file: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    #[track_caller]
    pub(crate) fn btrfs(directory: &Path) -> Self {
        Self::make("mkfs.btrfs -q", "300M", directory)
    }

    #[track_caller]
    pub(crate) fn xfs(directory: &Path) -> Self {
        Self::make("mkfs.xfs -q", "320M", directory)
    }

    #[track_caller]
    pub(crate) fn ext4(directory: &Path, size: &str) -> Self {
        Self::make("mkfs.ext4 -q -m 0", size, directory)
    }

    #[track_caller]
    fn make(program: &str, size: &str, directory: &Path) -> Self {
        let file = PathBuf::from(format!("/root/{}.disk", unique("fs")));
        fs::create_dir_all(directory).expect("making a mount point");
        let script = "truncate -s \"$3\" \"$1\" && $4 \"$1\" && mount -o loop \"$1\" \"$2\"";
        sh(
            script,
            [file.as_os_str(), directory.as_os_str(), size.as_ref(), program.as_ref()],
        )
        .ok();
        Self {
            file,
            mounted: directory.to_owned(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", [&self.mounted]).any();
        let _ = fs::remove_file(&self.file);
    }
}

/// Writes a program of an image.
pub(crate) fn write_program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("making a directory");
    fs::write(path, text).expect("writing a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("making it executable");
}

/// The Debian that guests of this run are: the host's own where its mirror is fresh.
pub(crate) fn guest_suite() -> &'static str {
    // The mirror's copy of forky may be past its date.
    if suite() == "bookworm" { "bookworm" } else { "trixie" }
}

/// What every bootstrap of this run is given: one suite tries the other bootstrapper, and the mirror may be named.
pub(crate) fn bootstrap_options() -> Vec<String> {
    let mut options = Vec::new();
    if suite() == "bookworm" {
        options.push("--bootstrapper=debootstrap".to_owned());
    }
    if let Ok(mirror) = std::env::var("MACHINIST_TEST_MIRROR") {
        options.push(format!("--mirror={mirror}"));
    }
    options
}

/// Creates a Debian machine; the first call of the run bootstraps it, the others wait for that one.
#[track_caller]
pub(crate) fn create_debian(name: &str, options: &[&str]) -> Output {
    static FIRST: Mutex<()> = Mutex::new(());
    let _one_at_a_time = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let source = format!("debian:{}", guest_suite());
    let mut words = vec!["create".to_owned(), name.to_owned(), source];
    words.extend(bootstrap_options());
    words.extend(options.iter().map(|option| (*option).to_owned()));
    machinist(&words).ok()
}
