//! The other way in: the machine's own systemd starts the program, as a transient service that can do no more than itself.
//!
//! It is asked at its private socket, so that no D-Bus daemon is needed inside. What is set is described in
//! org.freedesktop.systemd1(5), systemd.service(5) and systemd.exec(5).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zbus::message::{Flags, Type as Kind};
use zbus::zvariant::{DynamicType, Type};
use zbus::{Connection, Fd, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

use super::caller::Helper;
use super::private::converse;
use super::properties::{Property, attributes_of, properties_of, property, text, texts};
use super::protocol::{Reply, Run, Task};
use super::terminal::path_inside;
use super::{EnterError, Exit, failed};
use crate::machine::text::printable;
use crate::sys::bus::manager::major_version;
use crate::sys::bus::systemd1::exec_start;
use crate::sys::files::Root;
use crate::sys::guest::Leader;
use crate::sys::raw::enter as raw;

/// Where systemd listens for root, with or without a message bus.
pub(super) const SOCKET: &str = "/run/systemd/private";
pub(super) const SERVICE: &str = "org.freedesktop.systemd1";
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long systemd may take to start a program, or for any other answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a machine may take to go after its systemd hung up.
const GRACE: Duration = Duration::from_secs(1);

/// How a process can end, see waitid(2).
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

/// Variables that systemd gives a service of its own accord.
const UNWANTED: [&str; 6] = [
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "SYSTEMD_EXEC_PID",
];

/// A program that the machine's systemd runs.
#[derive(Debug)]
pub(super) struct Service {
    bus: Connection,
    unit: String,
    /// The machine's leader, readable when it has ended.
    leader: AsyncFd<OwnedFd>,
    heard: Mutex<Heard>,
    /// Kills the program if we die, or drop this before its end.
    watcher: Option<Helper>,
}

/// What systemd tells of the service.
#[derive(Debug)]
struct Heard {
    messages: MessageStream,
    /// The service's object.
    path: String,
    /// Neither running nor about to.
    is_dead: bool,
    /// How the program ended, as waitid(2) tells it: `CLD_EXITED` or another, and the status or signal.
    end: (i32, i32),
}

/// A terminal of the guest, held open until the program has opened it.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    _slave: OwnedFd,
    /// Where it is, inside.
    path: String,
}

/// Has the machine's systemd start the program with these streams, or with a terminal, whose master is returned.
pub(super) async fn start(
    leader: &Leader,
    machine_unit: &str,
    run: &Run,
    streams: &[OwnedFd],
) -> Result<(Service, Option<OwnedFd>), EnterError> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed("get a random number"))?;
    let id = id.trim().replace('-', "");
    let unit = format!("machinist-exec-{id}.service");
    let path = format!("{MANAGER_PATH}/unit/machinist_2dexec_2d{id}_2eservice");
    let last_words = (!run.detached).then(|| last_words(&unit)).transpose();
    let task = Task::Connect {
        path: SOCKET.to_owned(),
        terminal: run.terminal,
        last_words: last_words.map_err(|error| from_bus(&error))?,
    };
    let helper = Helper::start(leader, machine_unit, task, &[])?;
    // Meanwhile.
    let prepared = prepare(leader, run);
    let (helper, socket, terminal) = connected(helper).await?;
    let (place, mut properties) = prepared?;
    properties.extend(streams_or_terminal(streams, terminal.as_ref())?);
    let bus = converse(socket, &path).await.map_err(|error| from_bus(&error))?;
    let heard = Heard {
        messages: MessageStream::from(&bus),
        path,
        is_dead: false,
        end: (0, 0),
    };
    let leader = leader
        .pidfd()
        .try_clone_to_owned()
        .map_err(failed("watch the machine"))?;
    let mut service = Service {
        bus,
        unit,
        leader: raw::watch(leader).map_err(failed("watch the machine"))?,
        heard: Mutex::new(heard),
        watcher: (!run.detached).then_some(helper),
    };
    properties.push(property("UnsetEnvironment", service.unwanted(run).await?));
    properties.push(service.command(&place, run).await?);
    service.launch(&properties, run).await?;
    Ok((service, terminal.map(|terminal| terminal.master)))
}

impl Service {
    async fn call<B, R>(&self, interface: &str, method: &str, body: &B) -> Result<R, EnterError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let call = self
            .bus
            .call_method(Some(SERVICE), MANAGER_PATH, Some(interface), method, body);
        // zbus has a limit of its own for the answer, and none for the call.
        let reply = tokio::time::timeout(START_LIMIT, call).await.map_err(|_| too_slow())?;
        reply
            .and_then(|reply| reply.body().deserialize())
            .map_err(|error| from_bus(&error))
    }

    /// A property of its systemd's manager.
    async fn of_manager(&self, name: &str) -> Result<OwnedVariant, EnterError> {
        self.call("org.freedesktop.DBus.Properties", "Get", &(MANAGER, name))
            .await
    }

    /// The property that says what is to be executed.
    async fn command(&self, place: &str, run: &Run) -> Result<Property, EnterError> {
        let args = texts(&run.args, "an argument")?;
        // How a `$` is to be written depends on its version, and nothing else does.
        let has_dollar = args.iter().any(|word| word.contains('$'));
        let version = if has_dollar {
            let version = String::try_from(self.of_manager("Version").await?).unwrap_or_default();
            major_version(&version).map_err(|error| EnterError::Failed(error.to_string()))?
        } else {
            0
        };
        Ok(exec_start(place, &args, version))
    }

    /// The names of the variables that its systemd would set and nobody asked for.
    async fn unwanted(&self, run: &Run) -> Result<Vec<String>, EnterError> {
        let of_manager: Vec<String> = self.of_manager("Environment").await?.try_into().unwrap_or_default();
        let is_wanted = |name: &str| {
            run.env
                .iter()
                .any(|entry| entry.split(|byte| *byte == b'=').next() == Some(name.as_bytes()))
        };
        Ok(of_manager
            .iter()
            .filter_map(|entry| Some(entry.split_once('=')?.0))
            .chain(UNWANTED)
            .filter(|name| !is_wanted(name))
            .map(str::to_owned)
            .collect())
    }

    /// Starts it, and waits until the program is executed.
    async fn launch(&mut self, properties: &[Property], run: &Run) -> Result<(), EnterError> {
        let auxiliary: [(&str, &[Property]); 0] = [];
        let order = (&self.unit, "fail", properties, &auxiliary[..]);
        let job: OwnedObjectPath = self.call(MANAGER, "StartTransientUnit", &order).await?;
        let heard = self.heard.get_mut();
        let limit = Instant::now() + START_LIMIT;
        let result = loop {
            let next = tokio::time::timeout_at(limit, heard.messages.next());
            let Some(Ok(message)) = next.await.map_err(|_| too_slow())? else {
                return Err(EnterError::Failed("the machine's systemd hung up".into()));
            };
            heard.note(&message);
            if let Some((_, removed, _, result)) =
                signal_of::<(u32, OwnedObjectPath, String, String)>(&message, "JobRemoved")
                && removed == job
            {
                break result;
            }
        };
        // Statuses that systemd gives a service which it could not execute, see systemd.exec(5). Before 256 it may hear of
        // a program's end before it hears of its beginning: then that is the end of a program that ran.
        Err(match heard.end {
            _ if result == "done" => return Ok(()),
            (CLD_EXITED, 203) => {
                EnterError::NotExecutable(run.name(), io::Error::other("its systemd could not execute it"))
            }
            (CLD_EXITED, 200) => EnterError::Failed(format!(
                "cannot change to directory '{}' in the machine",
                printable(&String::from_utf8_lossy(&run.directories[0]))
            )),
            (CLD_EXITED, 217) => EnterError::Failed(format!("the machine's systemd knows no user {}", run.uid)),
            (CLD_EXITED, ..200 | 246..) | (CLD_KILLED | CLD_DUMPED, _) => return Ok(()),
            (_, status) => EnterError::Failed(format!(
                "the machine's systemd did not start the program: {}, status {status}",
                printable(&result)
            )),
        })
    }

    /// Waits for the program's end.
    pub(super) async fn wait(&self) -> Result<Exit, EnterError> {
        let mut heard = self.heard.lock().await;
        while !heard.is_dead {
            match heard.messages.next().await {
                Some(Ok(message)) => heard.note(&message),
                _ => return self.hung_up().await,
            }
        }
        // Only the low bits of a number count, see exit(3).
        match heard.end {
            (CLD_EXITED, status) => Ok(Exit::Status(status.to_le_bytes()[0])),
            (CLD_KILLED | CLD_DUMPED, signal) => Ok(Exit::Signal(signal.to_le_bytes()[0])),
            _ => Err(EnterError::Failed(
                "the machine's systemd did not say how the program ended".into(),
            )),
        }
    }

    /// Nobody speaks for systemd any more: the machine went down, and the program with it; or it executed itself anew.
    async fn hung_up(&self) -> Result<Exit, EnterError> {
        match tokio::time::timeout(GRACE, self.leader.readable()).await {
            Ok(_) => Ok(Exit::Signal(9)),
            Err(_) => Err(EnterError::Failed(format!(
                "the machine's systemd hung up; how the program ends is in the machine's journal, unit {}",
                self.unit
            ))),
        }
    }

    /// Sends a signal to all its processes.
    pub(super) async fn signal(&self, signal: Signal) {
        let _: Result<(), EnterError> = self
            .call(MANAGER, "KillUnit", &(&self.unit, "all", signal.as_raw()))
            .await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take()
            && !self.heard.get_mut().is_dead
        {
            watcher.finish();
        }
    }
}

impl Heard {
    /// Takes note of what a message says about the service.
    fn note(&mut self, message: &Message) {
        let is_ours = message.header().path().is_some_and(|path| path.as_str() == self.path);
        let Some((_, changed, _)) = signal_of::<Changed>(message, "PropertiesChanged").filter(|_| is_ours) else {
            return;
        };
        let number = |name| changed.get(name).and_then(|value| i32::try_from(value).ok());
        if let (Some(code), Some(status)) = (number("ExecMainCode"), number("ExecMainStatus")) {
            self.end = (code, status);
        }
        let state = changed
            .get("ActiveState")
            .and_then(|value| <&str>::try_from(value).ok());
        // It is inactive, too, before it is started.
        self.is_dead |= self.end.0 != 0 && matches!(state, Some("inactive" | "failed"));
    }
}

/// `PropertiesChanged`: interface, new values, names of those without.
pub(super) type Changed = (String, HashMap<String, OwnedVariant>, Vec<String>);

/// What a signal of this name says; `None` if it is another message.
pub(super) fn signal_of<T: DeserializeOwned + Type>(message: &Message, name: &str) -> Option<T> {
    let is_it = message.message_type() == Kind::Signal
        && message.header().member().is_some_and(|member| member.as_str() == name);
    is_it.then(|| message.body().deserialize().ok()).flatten()
}

/// Calls that kill all of the unit, and take its start back if it is still to come, as they go over the wire.
fn last_words(unit: &str) -> zbus::Result<Vec<u8>> {
    let call = |method| {
        let call = Message::method_call(MANAGER_PATH, method)
            .destination(SERVICE)
            .interface(MANAGER);
        call.with_flags(Flags::NO_REPLY_EXPECTED)
    };
    let kill = call("KillUnit").build(&(unit, "all", Signal::KILL.as_raw()))?;
    let stop = call("StopUnit").build(&(unit, "replace"))?;
    Ok([kill.data().bytes(), stop.data().bytes()].concat())
}

fn too_slow() -> EnterError {
    EnterError::Failed("the machine's systemd does not start the program in time".into())
}

pub(super) fn from_bus(error: &zbus::Error) -> EnterError {
    let text = match error {
        zbus::Error::MethodError(name, message, _) => message.clone().unwrap_or_else(|| name.to_string()),
        other => other.to_string(),
    };
    EnterError::Failed(format!("the machine's systemd says: {}", printable(&text)))
}

/// The helper's connection to the machine's systemd, and the terminal that it opened inside.
pub(super) async fn connected(mut helper: Helper) -> Result<(Helper, OwnedFd, Option<Terminal>), EnterError> {
    let strange = || EnterError::Failed("the helper answered strangely".into());
    let mut terminal = None;
    let socket = loop {
        let (reply, fds) = helper.reply().await?.ok_or_else(strange)?;
        let mut fds = fds.into_iter();
        match (reply, fds.next(), fds.next()) {
            (Reply::Tried, Some(socket), None) => break socket,
            (Reply::Terminal, Some(master), Some(slave)) => {
                terminal = Some(Terminal {
                    path: path_inside(&master).map_err(failed("find the terminal"))?,
                    master,
                    _slave: slave,
                });
            }
            (Reply::Failed(reason) | Reply::Refused(reason), ..) => {
                return Err(EnterError::Failed(printable(&reason)));
            }
            _ => return Err(strange()),
        }
    };
    if rustix::net::getpeername(&socket).is_err() {
        return Err(EnterError::Refused(format!(
            "nobody listens at {SOCKET} in the machine"
        )));
    }
    Ok((helper, socket, terminal))
}

/// The program, and what its systemd is told about it.
fn prepare(leader: &Leader, run: &Run) -> Result<(String, Vec<Property>), EnterError> {
    let gone = || EnterError::Failed("the machine has stopped".into());
    let place = find_program(&leader.root().ok_or_else(gone)?, run)?;
    let mut properties = properties_of(run)?;
    properties.extend(attributes_of(leader).ok_or_else(gone)?);
    Ok((place, properties))
}

/// The first place where there is an executable file.
fn find_program(root: &Root, run: &Run) -> Result<String, EnterError> {
    let mut worst = EnterError::NotFound(run.name());
    for place in &run.candidates {
        let place = from_directory(&text(place, "the command")?, run)?;
        match root.is_executable(&place) {
            None => {}
            Some(true) => return Ok(place),
            Some(false) => worst = EnterError::NotExecutable(run.name(), io::ErrorKind::PermissionDenied.into()),
        }
    }
    Err(worst)
}

/// A path as seen from the directory that the program is started in.
fn from_directory(path: &str, run: &Run) -> Result<String, EnterError> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let directory = text(&run.directories[0], "the directory")?;
    Ok(format!("/{}/{path}", directory.trim_matches('/')))
}

fn streams_or_terminal(streams: &[OwnedFd], terminal: Option<&Terminal>) -> Result<Vec<Property>, EnterError> {
    let names = ["StandardInput", "StandardOutput", "StandardError"];
    if terminal.is_none() && streams.is_empty() {
        return Ok(names.map(|name| property(name, "null")).into());
    }
    if let Some(terminal) = terminal {
        let mut list: Vec<_> = names.map(|name| property(name, "tty")).into();
        list.push(property("TTYPath", terminal.path.clone()));
        return Ok(list);
    }
    let pairs = names.iter().zip(streams);
    let properties = pairs.map(|(name, stream)| {
        let stream = stream.try_clone().map_err(failed("hand on a stream"))?;
        Ok(property(format!("{name}FileDescriptor"), Variant::Fd(Fd::from(stream))))
    });
    properties.collect()
}
