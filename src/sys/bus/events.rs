//! What systemd and machined say of machines, as it happens: by their signals, on a connection of its own.

use std::collections::{HashMap, VecDeque};

use futures_util::StreamExt as _;
use zbus::message::Type;
use zbus::wire::{OwnedObjectPath, OwnedVariant};
use zbus::{MatchRule, Message, MessageStream};

use super::{Bus, BusError, Properties, classify, machine1, systemd1};

/// The bus itself.
const BUS: &str = "org.freedesktop.DBus";
const MACHINES: &str = "org.freedesktop.machine1.Manager";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// Something that happened.
#[derive(Debug)]
pub enum Signal {
    /// A machine was registered, or is no more.
    Machine {
        /// Its name.
        name: String,
        /// Whether it has come.
        came: bool,
    },
    /// Properties of a unit have changed.
    Unit {
        /// Its name.
        unit: String,
        /// Those that have.
        changed: Properties,
    },
    /// A job was queued, or is over.
    Job {
        /// Its number.
        id: u32,
        /// Its object.
        path: String,
        /// The unit.
        unit: String,
        /// How it ended: "done", "failed" … `None` of one that begins.
        result: Option<String>,
    },
    /// systemd has been executed anew: it has to be asked again.
    Restarted,
    /// machined has started, or ended.
    Machined {
        /// Whether it is there.
        present: bool,
    },
}

/// Signals, for as long as the connection lasts.
#[derive(Debug)]
pub struct Signals {
    messages: MessageStream,
    /// What came while we had not asked for everything yet.
    early: VecDeque<zbus::Result<Message>>,
    /// Who may speak: the unique names of systemd and machined. Anybody may send a signal to us alone.
    systemd: String,
    machined: Option<String>,
}

impl Bus {
    /// Has systemd and machined tell us what happens. The connection is for that alone: while nobody listens, nothing else
    /// comes through it.
    pub async fn signals(&self) -> Result<Signals, BusError> {
        let mut messages = MessageStream::from(self.connection());
        let mut early = VecDeque::new();
        let mut asked = std::pin::pin!(self.ask_for_signals());
        // Answers come behind signals, and systemd that was executed anew sends hundreds: they have to be taken meanwhile.
        let (systemd, machined) = loop {
            tokio::select! {
                biased;
                owners = &mut asked => break owners?,
                Some(message) = messages.next() => early.push_back(message),
            }
        };
        Ok(Signals {
            messages,
            early,
            systemd,
            machined,
        })
    }

    /// Asks for all that [`Signals`] understands; returns who systemd is, and machined.
    async fn ask_for_signals(&self) -> Result<(String, Option<String>), BusError> {
        let failed = |error: zbus::Error| classify(&error, systemd1::SERVICE, "listen to systemd", "");
        let bus = zbus::fdo::DBusProxy::new(self.connection()).await.map_err(failed)?;
        let signal = || MatchRule::builder().msg_type(Type::Signal);
        let systemd = || signal().sender(systemd1::NAME);
        let changed = |name| signal().sender(BUS).member("NameOwnerChanged").add_arg(name);
        let rules = [
            signal().sender(machine1::NAME).interface(MACHINES).build(),
            systemd().interface(MANAGER).member("JobNew").build(),
            systemd().interface(MANAGER).member("JobRemoved").build(),
            systemd()
                .interface(PROPERTIES)
                .path_namespace(UNITS)
                .add_arg("org.freedesktop.systemd1.Unit")
                .build(),
            changed(machine1::NAME).build(),
            changed(systemd1::NAME).build(),
        ];
        for rule in rules {
            let added = bus.add_match_rule(rule.map_err(failed)?).await;
            added.map_err(|error| failed(error.into()))?;
        }
        match self.manager().await?.subscribe().await {
            Ok(()) => {}
            Err(zbus::Error::MethodError(name, ..)) if name.as_str().ends_with("AlreadySubscribed") => {}
            Err(error) => return Err(failed(error)),
        }
        let systemd = self.owner(systemd1::NAME).await.unwrap_or_default();
        let machined = self.owner(machine1::NAME).await;
        Ok((systemd, machined))
    }

    /// Who has a name on the bus.
    async fn owner(&self, name: &str) -> Option<String> {
        let (path, arguments) = ("/org/freedesktop/DBus", (name,));
        let call = self
            .connection()
            .call_method(Some(BUS), path, Some(BUS), "GetNameOwner", &arguments);
        call.await.ok()?.body().deserialize::<String>().ok()
    }

    /// What a job is to do: "start", "stop" …; `None` if it is over.
    pub async fn job_type(&self, path: &str) -> Option<String> {
        let interface = "org.freedesktop.systemd1.Job";
        let service = (systemd1::NAME, systemd1::SERVICE);
        let found = self
            .some_properties(service, path, interface, &["JobType"], "a job")
            .await;
        found.ok().map(|found| found.string("JobType"))
    }
}

impl Signals {
    /// The next; `None` when the connection is gone.
    pub async fn next(&mut self) -> Option<Signal> {
        loop {
            let message = match self.early.pop_front() {
                Some(message) => message.ok()?,
                None => self.messages.next().await?.ok()?,
            };
            if message.message_type() == Type::Signal
                && let Some(signal) = self.understand(&message)
            {
                return Some(signal);
            }
        }
    }

    fn understand(&mut self, message: &Message) -> Option<Signal> {
        let header = message.header();
        let sender = header.sender()?.as_str().to_owned();
        let body = message.body();
        match (header.interface()?.as_str(), header.member()?.as_str()) {
            (BUS, "NameOwnerChanged") if sender == BUS => {
                let (name, _, owner): (String, String, String) = body.deserialize().ok()?;
                if name == systemd1::NAME && !owner.is_empty() && owner != self.systemd {
                    return Some(Signal::Restarted);
                }
                if name != machine1::NAME {
                    return None;
                }
                self.machined = Some(owner).filter(|owner| !owner.is_empty());
                let present = self.machined.is_some();
                Some(Signal::Machined { present })
            }
            (MACHINES, member) if self.machined.as_ref() == Some(&sender) => {
                let came = match member {
                    "MachineNew" => true,
                    "MachineRemoved" => false,
                    _ => return None,
                };
                let (name, _): (String, OwnedObjectPath) = body.deserialize().ok()?;
                Some(Signal::Machine { name, came })
            }
            (MANAGER, "JobNew") if sender == self.systemd => {
                let (id, path, unit): (u32, OwnedObjectPath, String) = body.deserialize().ok()?;
                let path = path.as_str().to_owned();
                let result = None;
                Some(Signal::Job { id, path, unit, result })
            }
            (MANAGER, "JobRemoved") if sender == self.systemd => {
                let (id, path, unit, result): (u32, OwnedObjectPath, String, String) = body.deserialize().ok()?;
                let path = path.as_str().to_owned();
                let result = Some(result);
                Some(Signal::Job { id, path, unit, result })
            }
            (PROPERTIES, "PropertiesChanged") if sender == self.systemd => {
                let unit = unit_of(header.path()?.as_str())?;
                let (_, changed, _): (String, HashMap<String, OwnedVariant>, Vec<String>) = body.deserialize().ok()?;
                let changed = Properties::from(changed);
                Some(Signal::Unit { unit, changed })
            }
            _ => None,
        }
    }
}

/// The unit whose object it is: see `sd_bus_path_decode(3)`.
fn unit_of(path: &str) -> Option<String> {
    let name = path.strip_prefix(UNITS)?.strip_prefix('/')?;
    let mut bytes = name.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'_' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::unit_of;

    #[test]
    fn objects_are_those_of_units() {
        let of = |name: &str| unit_of(&format!("/org/freedesktop/systemd1/unit/{name}"));
        assert_eq!(
            of("systemd_2dnspawn_40web_2eservice").as_deref(),
            Some("systemd-nspawn@web.service")
        );
        assert_eq!(of("_30a"), Some("0a".to_owned()));
        assert_eq!(of("a_2"), None);
        assert_eq!(of("a_zz"), None);
        assert_eq!(unit_of("/org/freedesktop/systemd1/job/7"), None);
    }
}
