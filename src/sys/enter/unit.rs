//! Watching a unit of the machine's own systemd, which is asked at its private socket: see [`super::transient`].

use futures_util::StreamExt as _;
use zbus::{Connection, MessageStream, OwnedObjectPath, OwnedVariant};

use super::EnterError;
use super::caller::Helper;
use super::private::converse;
use super::protocol::Task;
use super::transient::{Changed, MANAGER, MANAGER_PATH, SERVICE, SOCKET, connected, from_bus, signal_of};
use crate::machine::text::printable;
use crate::sys::bus::manager::unit_path;
use crate::sys::guest::Leader;

/// What became of a unit that was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// It is active.
    Up,
    /// It failed, and nothing starts it again.
    Failed,
    /// It is not there, or cannot be: "not-found", "masked", "error" …
    Unloadable(String),
}

/// Waits until a unit of the machine is active, or will not be.
///
/// # Errors
/// [`EnterError::Refused`] if no systemd listens in the machine, not yet or not at all; any other if it hangs up. It can be
/// tried again then.
pub async fn wait_for_unit(leader: &Leader, machine_unit: &str, unit: &str) -> Result<Came, EnterError> {
    let mut path = unit_path(unit);
    let mut bus = connect(leader, machine_unit, &path).await?;
    let loaded = load(&bus, unit).await?;
    if loaded != path {
        // It has another name, by which its signals come.
        path = loaded;
        bus = connect(leader, machine_unit, &path).await?;
        load(&bus, unit).await?;
    }
    let mut messages = MessageStream::from(&bus);
    loop {
        let state = State::of(&bus, &path).await?;
        if let Some(came) = state.came() {
            return Ok(came);
        }
        has_changed(&mut messages).await?;
    }
}

/// Returns when a property of the unit has changed. Answers to our own questions come this way, too.
async fn has_changed(messages: &mut MessageStream) -> Result<(), EnterError> {
    while let Some(Ok(message)) = messages.next().await {
        if signal_of::<Changed>(&message, "PropertiesChanged").is_some() {
            return Ok(());
        }
    }
    Err(EnterError::Failed("the machine's systemd hung up".into()))
}

/// A connection on which only what is about this unit is heard.
pub(super) async fn connect(leader: &Leader, machine_unit: &str, path: &str) -> Result<Connection, EnterError> {
    let task = Task::Connect {
        path: SOCKET.to_owned(),
        terminal: None,
        last_words: None,
    };
    let (_, socket, _) = connected(Helper::start(leader, machine_unit, task, &[])?).await?;
    converse(socket, path).await.map_err(|error| from_bus(&error))
}

/// Has systemd load the unit, if it has not; its path.
async fn load(bus: &Connection, unit: &str) -> Result<String, EnterError> {
    let arguments = (unit,);
    let reply = bus.call_method(Some(SERVICE), MANAGER_PATH, Some(MANAGER), "LoadUnit", &arguments);
    let reply = reply.await.map_err(|error| from_bus(&error))?;
    let path = reply.body().deserialize::<OwnedObjectPath>();
    Ok(path.map_err(|error| from_bus(&error))?.as_str().to_owned())
}

/// Two of a unit's properties, and whether a job is queued for it.
#[derive(Debug)]
struct State {
    load: String,
    active: String,
    has_job: bool,
}

impl State {
    async fn of(bus: &Connection, path: &str) -> Result<Self, EnterError> {
        let get = async |name: &str| {
            let arguments = ("org.freedesktop.systemd1.Unit", name);
            let properties = Some("org.freedesktop.DBus.Properties");
            let reply = bus
                .call_method(Some(SERVICE), path, properties, "Get", &arguments)
                .await?;
            reply.body().deserialize::<OwnedVariant>()
        };
        let text = async |name: &str| {
            let value = get(name).await.map_err(|error| from_bus(&error))?;
            Ok::<_, EnterError>(String::try_from(value).map(|text| printable(&text)).unwrap_or_default())
        };
        let job = get("Job").await.map_err(|error| from_bus(&error))?;
        let job = <(u32, OwnedObjectPath)>::try_from(job);
        Ok(Self {
            load: text("LoadState").await?,
            active: text("ActiveState").await?,
            has_job: job.is_ok_and(|(number, _)| number > 0),
        })
    }

    fn came(&self) -> Option<Came> {
        match (self.load.as_str(), self.active.as_str()) {
            (_, "active" | "reloading") => Some(Came::Up),
            (_, "failed") if !self.has_job => Some(Came::Failed),
            ("loaded" | "stub" | "merged", _) => None,
            (other, _) => Some(Came::Unloadable(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_come_any_more_is_the_end() {
        let came = |load: &str, active: &str, has_job| {
            let (load, active) = (load.to_owned(), active.to_owned());
            State { load, active, has_job }.came()
        };
        assert_eq!(came("loaded", "active", false), Some(Came::Up));
        assert_eq!(came("loaded", "activating", true), None);
        assert_eq!(came("loaded", "inactive", false), None);
        assert_eq!(came("loaded", "failed", true), None);
        assert_eq!(came("loaded", "failed", false), Some(Came::Failed));
        assert_eq!(
            came("masked", "inactive", false),
            Some(Came::Unloadable("masked".into()))
        );
        // Its file is gone, and it still runs.
        assert_eq!(came("not-found", "active", false), Some(Came::Up));
    }
}
