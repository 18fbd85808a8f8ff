//! The helper: a process of one thread, from a sealed memfd, that joins a machine.
//!
//! It stays outside of the guest's process id namespace, where nobody inside can see or trace it, until it has no more
//! privileges than the guest's PID 1; only then it makes the process that the guest sees. After the join nothing is loaded:
//! no name service, no locale, no library. See setns(2), namespaces(7), user_namespaces(7).

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::personality::{self, Persona};
use nix::unistd;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, set_dumpable_behavior, set_parent_process_death_signal, waitid,
};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::events::{self, is_hung_up, is_readable, wait_for_either};
use super::privileges::{self, PrivilegeError, Privileges, is_init};
use super::protocol::{Order, Reply, Run, Size, Task, receive, send};
use super::terminal;
use crate::sys::raw::enter::{self as raw, Cloned};

/// What it is called, as argument 0.
pub(in crate::sys) const JOB: &str = "machinist: enter";

/// How long systemd may take to read again.
const SPEECH_LIMIT: Duration = Duration::from_secs(5);
/// How long it is listened to after the last words, and how often the machine is looked at meanwhile.
const HEARING_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);
/// `CGROUP2_SUPER_MAGIC`, see statfs(2).
const CGROUP2: rustix::fs::FsWord = 0x6367_7270;

/// The namespaces of a process, by their names in `/proc/PID/ns`.
const NAMESPACES: [(&str, CloneFlags); 7] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// Does the helper's work. The caller's socket is standard input; what failed is said there.
pub(in crate::sys) fn helper_main() -> ExitCode {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    match work(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reply) => {
            let _ = send(&control, &reply, &[]);
            ExitCode::FAILURE
        }
    }
}

fn failed<E: std::fmt::Display>(doing: &str) -> impl FnOnce(E) -> Reply {
    move |error| Reply::Failed(format!("cannot {doing}: {error}"))
}

fn work(control: &OwnedFd) -> Result<(), Reply> {
    // No terminal of the caller's is ours from here on, and no key reaches us: Ctrl-Z is not to stop us while we hold PID 1
    // by ptrace(2).
    unistd::setsid().map_err(failed("make a session"))?;
    // The caller's death is ours until there is a program; nobody reads our memory or opens our files.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the caller"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide the memory"))?;
    let (order, fds) = receive_order(control)?;
    let mut fds = fds.into_iter();
    let leader = fds.next().ok_or_else(|| failed("read the order")("no leader"))?;
    let streams: Vec<OwnedFd> = fds.collect();

    let pid = order.leader;
    match order.task {
        Task::Connect {
            path,
            terminal,
            last_words,
        } => {
            join_control_group(control, pid, &order.unit)?;
            let socket = try_to_connect(control, pid, &leader, &path, terminal)?;
            if last_words.is_some() {
                // What ends the caller is not to end us.
                set_parent_process_death_signal(None).map_err(failed("let go of the caller"))?;
            }
            send(control, &Reply::Tried, &[socket.as_fd()]).map_err(failed("answer"))?;
            last_words.map_or(Ok(()), |words| {
                wait_and_say(control, &leader, &socket, &words).map_err(failed("wait for the caller"))
            })
        }
        Task::Run(run) => {
            let refused = |error: PrivilegeError| Reply::Refused(error.to_string());
            let mut privileges = Privileges::of(pid).map_err(refused)?;
            let persona = fs::read_to_string(format!("/proc/{pid}/personality"))
                .ok()
                .and_then(|text| i32::from_str_radix(text.trim(), 16).ok())
                .unwrap_or(0);
            take_attributes(pid)?;
            join_control_group(control, pid, &order.unit)?;
            privileges.open_label().map_err(refused)?;
            join(pid, &leader)?;
            rustix::process::umask(Mode::from_bits_truncate(privileges.umask()));
            let terminal = run.terminal.map(terminal::open_inside).transpose();
            let terminal = terminal.map_err(failed("open a terminal in the machine"))?;
            let (streams, life) = if run.detached {
                let null = null_inside().map_err(failed("open /dev/null in the machine"))?;
                (null, streams.into_iter().next())
            } else {
                (streams, None)
            };
            privileges.take_on().map_err(refused)?;
            personality::set(Persona::from_bits_retain(persona)).map_err(failed("set the personality"))?;
            start(control, &run, streams, terminal, life)
        }
    }
}

/// Joins the machine's namespaces, as its root. What was read by the leader's number before was the leader's if this
/// succeeds.
fn join(pid: i32, leader: &OwnedFd) -> Result<(), Reply> {
    let root = File::open(format!("/proc/{pid}/root")).map_err(failed("open its root"))?;
    let namespaces = namespaces_to_join(pid).map_err(failed("look at its namespaces"))?;
    if is_readable(leader) {
        return Err(Reply::Failed("the machine has stopped".into()));
    }
    setns(leader, namespaces).map_err(failed("join the namespaces"))?;
    unistd::fchdir(&root)
        .and_then(|()| unistd::chroot("."))
        .and_then(|()| unistd::chdir("/"))
        .map_err(failed("enter the root directory"))?;
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))
        .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
        .map_err(failed("become root of the machine"))?;
    // Changing users makes the memory readable again and forgets the death signal.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide the memory"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the caller"))
}

fn receive_order(control: &OwnedFd) -> Result<(Order, Vec<OwnedFd>), Reply> {
    let failed = |error: io::Error| failed("read the order")(error);
    let ((), mut fds) = receive::<()>(control)
        .map_err(failed)?
        .filter(|((), fds)| !fds.is_empty())
        .ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
    let file = io::BufReader::new(File::from(fds.remove(0)));
    let order = serde_json::from_reader(file).map_err(|error| failed(error.into()))?;
    Ok((order, fds))
}

/// Those that are not ours already: joining the own user namespace is an error.
fn namespaces_to_join(pid: i32) -> io::Result<CloneFlags> {
    let mut flags = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        if fs::read_link(format!("/proc/{pid}/ns/{name}"))? != fs::read_link(format!("/proc/self/ns/{name}"))? {
            flags |= flag;
        }
    }
    if flags.contains(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS) {
        Ok(flags)
    } else {
        Err(io::Error::other("it has no process ids or no mounts of its own"))
    }
}

/// Joins the control group of the leader, which must be a PID 1 in the unit's. Who returns may be a copy of who called.
fn join_control_group(control: &OwnedFd, pid: i32, unit: &str) -> Result<(), Reply> {
    let refused = |error: &dyn std::fmt::Display| Reply::Refused(format!("cannot join its control group: {error}"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(failed("read the status of PID 1"))?;
    let groups =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(failed("read the control group of PID 1"))?;
    // Hierarchies of cgroup v1 that nobody has mounted are named, too, and mean nothing.
    let unified = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|stat| stat.f_type == CGROUP2);
    let group = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .filter(|_| unified)
        .ok_or_else(|| refused(&"this host has no unified hierarchy"))?;
    let mut parts = group.split('/');
    if !is_init(&status) || !parts.clone().any(|part| part == unit) || parts.any(|part| part == "..") {
        return Err(Reply::Failed(format!(
            "its leader is no PID 1 in the control group of {unit}"
        )));
    }
    let group = format!("/sys/fs/cgroup{group}");
    let directory = File::open(&group).map_err(|error| refused(&error))?;
    match raw::clone_sibling_into(directory.as_fd()) {
        Ok(Cloned::Child) => {
            // This has not gone over to the copy.
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the caller"))
        }
        Ok(Cloned::Caller(pidfd)) => {
            let _ = send(control, &Reply::Moved, &[pidfd.as_fd()]);
            raw::exit_now()
        }
        // It is full, and a move would not mind.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(failed("make a process")(error)),
        // A filter of our own, or a kernel before 5.7.
        Err(_) => fs::OpenOptions::new()
            .write(true)
            .open(format!("{group}/cgroup.procs"))
            .and_then(|mut file| file.write_all(b"0"))
            .map_err(|error| refused(&error)),
    }
}

/// Takes on what is not in credentials: no keyring of ours, scheduling, resource limits, the OOM killer's
/// liking.
fn take_attributes(pid: i32) -> Result<(), Reply> {
    let refused = |doing: &str, error: io::Error| Reply::Refused(format!("cannot {doing}: {error}"));
    raw::join_anonymous_keyring().map_err(|error| refused("leave the session keyring", error))?;
    raw::take_scheduling_of(pid).map_err(|error| refused("take on its scheduling", error))?;
    raw::take_resource_limits_of(pid).map_err(|error| refused("take on its resource limits", error))?;
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
        .and_then(|score| fs::write("/proc/self/oom_score_adj", score))
        .map_err(|error| refused("take on its OOM score", error))
}

/// Speaks for a caller that could not: ends when the machine does, or after the words.
fn wait_and_say(control: &OwnedFd, leader: &OwnedFd, stream: &OwnedFd, words: &[u8]) -> io::Result<()> {
    wait_for_either(control, leader)?;
    if is_readable(leader) || !events::is_writable_within(stream, SPEECH_LIMIT) {
        return Ok(());
    }
    // Short as they are, they go at once or not at all.
    rustix::io::write(stream, words)?;
    // systemd reads no more from whom it cannot write to, and it tells everything to everybody: it is heard to the end.
    rustix::net::shutdown(stream, rustix::net::Shutdown::Write)?;
    let limit = Instant::now() + HEARING_LIMIT;
    while Instant::now() < limit && !is_readable(leader) {
        if events::is_readable_within(stream, LOOK) && rustix::io::read(stream, &mut [0_u8; 4096])? == 0 {
            break;
        }
    }
    Ok(())
}

/// The guest's own /dev/null, three times. What lies at its path is not trusted.
fn null_inside() -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
    if !is_null {
        return Err(io::Error::other("it is something else"));
    }
    rustix::fs::fcntl_setfl(&null, OFlags::RDWR)?;
    Ok(vec![null.try_clone()?, null.try_clone()?, null])
}

/// Has a socket connected by processes that are gone when this returns; whether it is, the socket tells.
fn try_to_connect(
    control: &OwnedFd,
    pid: i32,
    leader: &OwnedFd,
    path: &str,
    terminal: Option<Size>,
) -> Result<OwnedFd, Reply> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    // Whoever accepts gets a socket of the network namespace that this one is of: never the host's.
    setns(leader, CloneFlags::CLONE_NEWNET).map_err(failed("join the network"))?;
    // Non-blocking: whoever listens may never accept.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed("make a socket"))?;
    // Open as long as one of them lives, and silent unless one has told the caller why it could not.
    let (trace, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    if raw::clone_child().map_err(failed("make a process"))? {
        let Err(reply) = connect_from_inside(control, pid, leader, [&socket, &theirs], path, terminal);
        let _ = send(control, &reply, &[]).and(rustix::io::write(&theirs, b"!").map_err(io::Error::from));
        raw::exit_now();
    }
    drop(theirs);
    let ended = rustix::io::retry_on_intr(|| rustix::io::read(&trace, &mut [0_u8]));
    let child = rustix::io::retry_on_intr(|| waitid(WaitId::All, WaitIdOptions::EXITED));
    if let Some(signal) = child.ok().flatten().and_then(|status| status.terminating_signal()) {
        let what = format!("the process that was to connect was killed by signal {signal}");
        return Err(Reply::Failed(what));
    }
    match ended {
        Ok(0) => Ok(socket),
        _ => raw::exit_now(),
    }
}

/// Connects to a socket whose owner wants to see a process of the machine: its systemd believes nobody else.
///
/// For that moment there is one, with no capability and a filter that lets it do nothing but this: PID 1's own filters may
/// be hidden from us, and it is to have no more than PID 1.
fn connect_from_inside(
    control: &OwnedFd,
    pid: i32,
    leader: &OwnedFd,
    [socket, trace]: [&OwnedFd; 2],
    path: &str,
    terminal: Option<Size>,
) -> Result<Infallible, Reply> {
    use rustix::net::{SocketAddrUnix, connect};
    // This has not gone over to the copy; its parent may have died with the caller before.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the caller"))?;
    if is_hung_up(control) {
        raw::exit_now();
    }
    join(pid, leader)?;
    let terminal = terminal.map(terminal::open_inside).transpose();
    if let Some(terminal) = terminal.map_err(failed("open a terminal in the machine"))? {
        let fds = [terminal.master.as_fd(), terminal.slave.as_fd()];
        send(control, &Reply::Terminal, &fds).map_err(failed("answer"))?;
    }
    let address = SocketAddrUnix::new(path).map_err(failed("connect"))?;
    // Without private users the guest's root may take descriptors from the process that it sees: there are to be none but
    // the socket, and the end of the pipe. The caller cannot be told any more from here on.
    rustix::stdio::dup2_stdin(socket)
        .and_then(|()| rustix::stdio::dup2_stdout(trace))
        .map_err(failed("set the streams"))?;
    let is_alone = raw::close_from(3).is_ok() && privileges::keep_only_connect().is_ok();
    if !is_alone {
        let _ = rustix::io::write(rustix::stdio::stdout(), b"!");
        raw::exit_now();
    }
    // From here on every other system call is the end of the process.
    if let Ok(true) = raw::clone_child() {
        let _ = connect(rustix::stdio::stdin(), &address);
    }
    raw::exit_now()
}

/// Makes the process that the guest sees, and tells the caller, whose child it is.
fn start(
    control: &OwnedFd,
    run: &Run,
    streams: Vec<OwnedFd>,
    terminal: Option<terminal::Inside>,
    life: Option<OwnedFd>,
) -> Result<(), Reply> {
    match raw::clone_sibling().map_err(failed("make a process"))? {
        Cloned::Child => {
            let Err(reply) = become_program(control, run, streams, terminal);
            let _ = send(control, &reply, &[]);
            raw::exit_now()
        }
        Cloned::Caller(pidfd) => {
            let mut fds = vec![pidfd.as_fd()];
            fds.extend(terminal.as_ref().map(|terminal| terminal.master.as_fd()));
            send(control, &Reply::Started, &fds).map_err(failed("answer"))?;
            life.map_or(Ok(()), |life| keep_open(&life, &pidfd))
        }
    }
}

/// Keeps `life` open, and nothing else, until the program ends; with us ends the machine.
fn keep_open(life: &OwnedFd, program: &OwnedFd) -> Result<(), Reply> {
    // What ends the caller is not to end us.
    set_parent_process_death_signal(None).map_err(failed("let go of the caller"))?;
    rustix::stdio::dup2_stdin(life)
        .and_then(|()| rustix::stdio::dup2_stdout(program))
        .map_err(failed("set the streams"))?;
    if raw::close_from(2).is_ok() {
        let _ = events::wait_for_end(rustix::stdio::stdout());
    }
    raw::exit_now()
}

/// In the guest's sight, with the guest's privileges: becomes the user, and then the program.
fn become_program(
    control: &OwnedFd,
    run: &Run,
    streams: Vec<OwnedFd>,
    terminal: Option<terminal::Inside>,
) -> Result<Infallible, Reply> {
    // A session of its own: nothing inside can reach the caller's terminal or process group.
    unistd::setsid().map_err(failed("make a session"))?;
    let streams = match terminal {
        Some(terminal) => terminal
            .into_streams(run.uid)
            .map_err(failed("take the terminal"))?
            .into(),
        None => streams,
    };
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(streams).map_err(|_| failed("read the order")("no streams"))?;
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(failed("set the streams"))?;
    raw::close_on_exec_from(3).map_err(failed("close what is open"))?;

    let groups: Vec<Gid> = run.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (gid, uid) = (Gid::from_raw(run.gid), Uid::from_raw(run.uid));
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(failed("become the user"))?;
    if run.detached {
        set_parent_process_death_signal(None).map_err(failed("let go of the caller"))?;
    } else {
        // Changing users has undone this. If the caller died before, its end of the socket is closed.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the caller"))?;
        if is_hung_up(control) {
            raw::exit_now();
        }
    }
    change_directory(&run.directories)?;
    raw::reset_signals();
    Err(execute(run))
}

/// Goes to the first directory that there is, as the user, and sees that it is inside.
fn change_directory(directories: &[Vec<u8>]) -> Result<(), Reply> {
    let mut result = Err(rustix::io::Errno::NOENT);
    for directory in directories {
        result = rustix::process::chdir(directory.as_slice());
        if result.is_ok() {
            break;
        }
    }
    let shown =
        || crate::machine::text::printable(&String::from_utf8_lossy(directories.last().map_or(b"", Vec::as_slice)));
    result.map_err(|error| failed(&format!("change to directory '{}'", shown()))(error))?;
    // The kernel says "(unreachable)" of a place that is not below the root directory.
    let here = rustix::process::getcwd(Vec::new()).map_err(failed("look at the directory"))?;
    if here.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Reply::Failed(format!(
            "directory '{}' is not inside the machine",
            shown()
        )))
    }
}

/// Tries every place; returns only if none of them could be executed.
fn execute(run: &Run) -> Reply {
    let strings = |list: &[Vec<u8>]| list.iter().cloned().map(CString::new).collect::<Result<Vec<_>, _>>();
    let (Ok(candidates), Ok(args), Ok(env)) = (strings(&run.candidates), strings(&run.args), strings(&run.env)) else {
        return failed("read the order")("a NUL in it");
    };
    let mut worst = Reply::NotFound;
    for path in candidates {
        let Err(error) = unistd::execve(&path, &args, &env);
        match error {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another place may have one that can be executed, as execvp(3) does it.
            Errno::EACCES => worst = Reply::NotExecutable(error as i32),
            error => return Reply::NotExecutable(error as i32),
        }
    }
    worst
}
