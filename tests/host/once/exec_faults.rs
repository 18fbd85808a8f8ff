//! `exec` when things go wrong around it: stopped processes, services that die, a machine that is replaced by another one.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::exec::{inside, running};
use crate::support::{Guest, Running, alone, machinist, run, shared, stays, unique, unit_property, wait_until};

/// What helpers are called in the list of processes.
const HELPER: &str = "^machinist: enter";
const SOON: Duration = Duration::from_secs(20);

/// Script that waits for a file of the guest's root directory.
fn until(file: &str) -> String {
    format!("while ! test -e /{file}; do sleep 0.05; done")
}

/// A field of `/proc/PID/status`.
fn status_field(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

fn is_stopped(pid: i32) -> bool {
    status_field(pid, "State").starts_with('T')
}

fn helpers() -> String {
    run("pgrep", ["-f", HELPER]).any().stdout
}

/// The shell that a client runs, by its number on the host: it is the client's child, as is the helper for a moment.
fn shell_of(client: &Running) -> i32 {
    let mut found = None;
    wait_until("the shell is there", || {
        let children = run("pgrep", ["-P", &client.pid().to_string(), "-x", "sh"]).any().stdout;
        found = children.lines().next().and_then(|line| line.parse().ok());
        found.is_some()
    });
    found.unwrap()
}

/// Makes a file of the guest, whose root directory this also is.
fn touch(guest: &Guest, file: &str) {
    fs::write(guest.image().join(file), "").expect("writing a file of the guest");
}

/// A process that is stopped by ptrace(2) for as long as this is there: commands that are on their way in wait for it.
struct Traced(Running);

impl Traced {
    fn new(pid: i32) -> Self {
        let tracer = run("strace", ["-o", "/dev/null", "-p", &pid.to_string()]).spawn();
        wait_until("the tracer is there", || {
            status_field(pid, "TracerPid") == tracer.pid().to_string()
        });
        Self(tracer)
    }

    fn let_go(self) {
        self.0.signal(Signal::SIGINT);
        self.0.wait();
    }
}

/// All processes of a machine.
fn processes(guest: &Guest) -> Vec<String> {
    let group = format!("/sys/fs/cgroup{}", guest.property("ControlGroup"));
    let found = run(
        "find",
        [group.as_str(), "-name", "cgroup.procs", "-exec", "cat", "{}", "+"],
    );
    let mut found: Vec<String> = found.ok().stdout.lines().map(str::to_owned).collect();
    found.sort_unstable();
    found
}

/// How often each file is open in a process, by what the links say.
fn open_files(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("reading descriptors");
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect();
    files.sort_unstable();
    files
}

#[test]
fn a_thousand_commands_each_have_their_own_status_and_output() {
    // Fifty at a time: each helper is a copy of the program in memory, tens of megabytes of a debug build. Alone, since
    // nothing at all may be left.
    const COMMANDS: u32 = 1000;
    const AT_ONCE: u32 = 50;
    let _host = alone();
    // Nothing begins in this guest by itself.
    let guest = Guest::busybox("thousand");
    guest.start();
    inside(&guest, "true").ok();
    let look = || (processes(&guest), open_files(guest.leader()));
    let before = look();
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= COMMANDS {
                        return;
                    }
                    let status = number % 256;
                    let output = inside(&guest, &format!("echo {number}; echo e{number} >&2; exit {status}")).any();
                    assert_eq!(output.status, i32::try_from(status).unwrap(), "{output:?}");
                    assert_eq!(output.stdout, format!("{number}\n"), "{output:?}");
                    assert_eq!(output.stderr, format!("e{number}\n"), "{output:?}");
                }
            });
        }
    });
    assert_eq!(helpers(), "", "helpers are left");
    assert_eq!(look(), before, "something is left in the guest");
    let leader = guest.leader();
    assert_eq!(status_field(leader, "TracerPid"), "0");
    assert!(!status_field(leader, "State").starts_with(['T', 't']));
}

#[test]
fn who_comes_in_waits_for_another_one() {
    let _host = shared();
    let guest = running("tracer");
    let tracer = Traced::new(guest.leader());
    let mut client = inside(&guest, "exit 3").spawn();
    stays(
        "nobody enters while PID 1 is traced",
        Duration::from_millis(300),
        || !client.has_ended(),
    );
    tracer.let_go();
    assert_eq!(client.wait().status, 3);
}

#[test]
fn a_stopped_client_loses_nothing() {
    const LINES: usize = 2048;
    let _host = shared();
    let guest = running("stopped");
    // Lines of 4 KiB; the smallest pipe that the kernel gives takes sixteen.
    let write = format!("i=0; while test $i -lt {LINES}; do printf '%4095s\\n' $i; i=$((i+1)); echo $i >/at; done");
    let script = format!("touch /up; {}; {write}; touch /written; exit 9", until("go"));
    let client = inside(&guest, &script).spawn();
    let image = guest.image();
    wait_until("it runs", || image.join("up").exists());
    client.signal(Signal::SIGSTOP);
    wait_until("the client is stopped", || is_stopped(client.pid()));
    touch(&guest, "go");
    let at = || {
        let text = fs::read_to_string(image.join("at")).unwrap_or_default();
        text.trim().parse::<usize>().unwrap_or(0)
    };
    wait_until("the pipe is filled without the client", || at() >= 15);
    stays("the command waits for the client", Duration::from_millis(300), || {
        !image.join("written").exists() && is_stopped(client.pid())
    });
    client.signal(Signal::SIGCONT);
    let output = client.wait();
    assert_eq!(output.status, 9);
    assert_eq!(output.stdout.len(), LINES * 4096);
    for (number, line) in output.stdout.lines().enumerate() {
        assert_eq!(line.trim_start(), number.to_string());
    }
}

#[test]
fn a_command_that_is_stopped_inside_goes_on() {
    let _host = shared();
    let guest = running("stop-in");
    let script = format!(
        "echo $$ >/pid.new; mv /pid.new /pid; {}; echo went on; exit 4",
        until("go")
    );
    let mut client = inside(&guest, &script).spawn();
    wait_until("it runs", || guest.image().join("pid").exists());
    let command = shell_of(&client);
    inside(&guest, "kill -STOP $(cat /pid)").ok();
    wait_until("the command is stopped", || is_stopped(command));
    touch(&guest, "go");
    stays("a stopped command is no ended one", Duration::from_millis(300), || {
        is_stopped(command) && !client.has_ended()
    });
    inside(&guest, "kill -CONT $(cat /pid)").ok();
    let output = client.wait();
    assert_eq!((output.status, output.stdout.as_str()), (4, "went on\n"));
}

/// A way to the system bus that can be cut: to restart the bus itself would take the whole host's services with it.
struct Proxy {
    path: PathBuf,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn new() -> Self {
        let path = PathBuf::from(format!("/run/{}", unique("bus")));
        let listener = UnixListener::bind(&path).expect("listening");
        let streams = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&streams);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a client");
                let bus = UnixStream::connect("/run/dbus/system_bus_socket").expect("connecting to the bus");
                for (mut from, mut to) in [(&client, &bus), (&bus, &client)].map(|(a, b)| (copy(a), copy(b))) {
                    thread::spawn(move || io::copy(&mut from, &mut to));
                }
                kept.lock().unwrap().extend([client, bus]);
            }
        });
        Self { path, streams }
    }

    /// Closes all connections; how many there were.
    fn cut(&self) -> usize {
        let streams = std::mem::take(&mut *self.streams.lock().unwrap());
        for stream in &streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        streams.len() / 2
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn copy(stream: &UnixStream) -> UnixStream {
    stream.try_clone().expect("copying a descriptor")
}

#[test]
fn services_that_die_do_not_end_a_command() {
    // Others need these services all the time.
    let _host = alone();
    let guest = running("services");
    let proxy = Proxy::new();
    let script = format!("echo begun; touch /up; {}; echo done; exit 6", until("go"));
    let address = format!("unix:path={}", proxy.path.display());
    let client = inside(&guest, &script).env("DBUS_SYSTEM_BUS_ADDRESS", &address).spawn();
    wait_until("it runs", || guest.image().join("up").exists());
    assert!(proxy.cut() > 0, "the client did not use this way to the bus");
    let main = || unit_property("systemd-machined.service", "MainPID");
    for command in [
        ["kill", "--signal=KILL", "systemd-machined.service"].as_slice(),
        &["restart", "systemd-machined.service"],
        &["reload", "dbus.service"],
    ] {
        let before = main();
        run("systemctl", command).ok();
        // The bus starts machined for whoever asks it.
        inside(&guest, "exit 5").status(5);
        assert!(command[0] == "reload" || main() != before, "machined was not replaced");
    }
    touch(&guest, "go");
    let output = client.wait();
    assert_eq!((output.status, output.stdout.as_str()), (6, "begun\ndone\n"));
    output.stderr_is("");
}

/// Stops a machine as hard as it goes, and starts another one under its name.
fn replace(guest: &Guest) {
    machinist(["terminate", &guest.name]).ok();
    guest.start();
}

#[test]
fn a_command_on_its_way_does_not_land_in_the_next_machine() {
    let _host = shared();
    let guest = running("way");
    let leader = guest.leader();
    let tracer = Traced::new(leader);
    let client = inside(&guest, "touch /ran").spawn();
    let child = || {
        run("pgrep", ["-P", &client.pid().to_string(), "-f", HELPER])
            .any()
            .status
            == 0
    };
    wait_until("it is on its way", child);
    replace(&guest);
    assert_ne!(guest.leader(), leader);
    let output = client.wait();
    tracer.let_go();
    assert_eq!(output.status, 125, "{output:?}");
    output.quicker_than(SOON).stderr_has("error: ");
    assert!(!guest.image().join("ran").exists(), "it ran in the next machine");
    inside(&guest, "exit 8").status(8);
}

#[test]
fn a_command_that_runs_ends_with_its_machine() {
    let _host = shared();
    let guest = running("next");
    let client = inside(&guest, "touch /up; sleep 1000; touch /went-on").spawn();
    wait_until("it runs", || guest.image().join("up").exists());
    replace(&guest);
    let output = client.wait();
    // Before the machine is ended its init may have got to tell all processes to.
    if output.status != 143 {
        assert_eq!(output.status, 137, "{output:?}");
        output.stderr_has("stopped while the command ran");
    }
    assert!(!guest.image().join("went-on").exists());
}

#[test]
fn commands_beside_restarts_all_end() {
    let _host = shared();
    let guest = running("restarts");
    let leave = Arc::new(Mutex::new(false));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let (name, leave) = (guest.name.clone(), Arc::clone(&leave));
            thread::spawn(move || {
                let mut runs = 0_u32;
                while !*leave.lock().unwrap() {
                    let output = machinist(["exec", &name, "--", "sh", "-c", "echo in; exit 7"])
                        .within(SOON)
                        .any();
                    // It ran, it was killed with its machine, or there was none.
                    match output.status {
                        7 => assert_eq!(output.stdout, "in\n"),
                        137 => assert!(output.stderr.contains("stopped while the command ran"), "{output:?}"),
                        125 => assert!(output.stderr.contains("error: "), "{output:?}"),
                        _ => panic!("a strange end\n{output:?}"),
                    }
                    runs += u32::from(output.status == 7);
                }
                runs
            })
        })
        .collect();
    for _ in 0..3 {
        replace(&guest);
        inside(&guest, "exit 8").status(8);
    }
    *leave.lock().unwrap() = true;
    for worker in workers {
        assert!(worker.join().expect("a worker") > 0, "none of its commands ran");
    }
}

#[test]
fn a_guest_needs_no_proc_no_shell_and_no_accounts() {
    let _host = shared();
    let guest = Guest::busybox("bare");
    guest.start();
    let root = guest.image();
    fs::remove_file(root.join("bin/sh")).expect("removing the shell");
    for file in ["etc/passwd", "etc/group"] {
        let _ = fs::remove_file(root.join(file));
    }
    let exec = |options: &[&str], applet: &[&str]| {
        let words = [&["exec", guest.name.as_str()], options, &["--", "/bin/busybox"], applet];
        machinist(words.concat())
    };
    let bare = |exec: &dyn Fn(&[&str], &[&str]) -> crate::support::Run| {
        for user in ["0", "root", "0:0"] {
            exec(&["-u", user], &["id", "-u"]).ok().stdout_is("0\n");
            exec(&["-u", user], &["pwd"]).ok().stdout_has("/");
        }
        exec(&["-u", "4711"], &["id", "-g"]).ok().stdout_is("4711\n");
        exec(&["-u", "nobody"], &["true"])
            .status(125)
            .stderr_has("there is no user 'nobody' in the machine");
        exec(&[], &["sh", "-c", "exit 9"]).status(9);
        machinist(["exec", &guest.name, "--", "sh"])
            .status(127)
            .stderr_has("there is no program 'sh'");
        exec(&["-t"], &["true"]).ok();
    };
    bare(&exec);
    exec(&[], &["umount", "-l", "/proc"]).ok();
    exec(&[], &["test", "-e", "/proc/self"]).status(1);
    bare(&exec);
}

/// More than 32 bits can count, and still a few seconds; the bench carries more.
const MUCH: u64 = 5_000_000_000;
/// What a client may ever have of memory, in KiB: its own code, that of a debug build too, and no part of the data.
const PEAK_KIB: u64 = 64 << 10;
/// No power of two: a piece that is lost, doubled or swapped does not fit the next one.
const PERIOD: usize = 1_000_003;

/// Bytes that tell where in a period they stand, a period and a buffer long.
fn pattern() -> Vec<u8> {
    let mut state = 1_u32;
    let period = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    let period: Vec<u8> = period.take(PERIOD).collect();
    period.repeat(3)
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("64 bits") % PERIOD
}

#[test]
fn much_data_passes_whole_and_is_not_kept() {
    const PIECE: usize = 256 << 10;
    let _host = shared();
    let guest = running("much");
    let script = format!("cat; touch /passed; {}; exit 11", until("go"));
    let mut client = Command::new("machinist")
        .args(["exec", &guest.name, "--", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting it");
    let (mut to, mut from) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let bytes = Arc::new(pattern());
    let sent = Arc::clone(&bytes);
    thread::spawn(move || {
        let mut offset = 0;
        while offset < MUCH {
            let length = usize::try_from(MUCH - offset).expect("64 bits").min(PIECE);
            to.write_all(&sent[place(offset)..][..length]).expect("writing");
            offset += length as u64;
        }
    });
    let (mut offset, mut buffer) = (0_u64, vec![0; PIECE]);
    while offset < MUCH {
        let count = from.read(&mut buffer).expect("reading");
        assert!(count > 0, "the end at {offset}");
        assert!(
            buffer[..count] == bytes[place(offset)..][..count],
            "other bytes at {offset}"
        );
        offset += count as u64;
    }
    wait_until("all has passed", || guest.image().join("passed").exists());
    let peak = status_field(i32::try_from(client.id()).unwrap(), "VmHWM");
    let peak: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < PEAK_KIB, "the client took {peak} KiB");
    touch(&guest, "go");
    assert_eq!(from.read(&mut buffer).expect("reading"), 0, "more than was sent");
    assert_eq!(client.wait().expect("waiting").code(), Some(11));
}
