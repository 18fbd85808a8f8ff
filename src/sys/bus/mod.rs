//! systemd's D-Bus interfaces, one file each: only what is called, as hand-written `#[proxy]` traits.
//!
//! The contract is kept as introspection XML in `dbus/`, one file per interface and systemd version.

pub mod events;
pub mod jobs;
pub mod machine1;
pub mod manager;
pub mod properties;
pub mod systemd1;

use std::io;
use std::time::Duration;

use zbus::DBusError as _;
use zbus::proxy::CacheProperties;

pub use properties::Properties;

/// How long one D-Bus call may take. Anything slower than this is a service that hangs: on a busy host systemd was seen not to
/// answer for 45 s, and systemctl gives a reload three minutes.
/// Not a limit for jobs: those are waited for by signal.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);
/// A call on which polkit may ask a person takes as long as a person takes.
const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// What went wrong on the bus, told apart by the error's *name*, never by its text.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BusError {
    /// The bus, or the service behind the name, is not there.
    #[error("{service} is not available: {reason}")]
    Unavailable {
        /// The service as users know it: "systemd-machined", "the system bus".
        service: &'static str,
        /// What the bus said.
        reason: String,
    },
    /// `org.freedesktop.machine1.NoSuchMachine`
    #[error("machine '{0}' is not running")]
    NoSuchMachine(String),
    /// `org.freedesktop.machine1.NoSuchImage`
    #[error("no image '{0}'")]
    NoSuchImage(String),
    /// `org.freedesktop.systemd1.NoSuchUnit`
    #[error("no unit '{0}'")]
    NoSuchUnit(String),
    /// `AccessDenied` or `InteractiveAuthorizationRequired`
    #[error("not permitted to {doing}")]
    Denied {
        /// What was attempted: "start machine 'web'".
        doing: String,
    },
    /// Any other error reply, or a broken conversation.
    #[error("cannot {doing}: {message}")]
    Failed {
        /// What was attempted.
        doing: String,
        /// The error's D-Bus name, empty if it did not come as a reply.
        name: String,
        /// The error's text.
        message: String,
    },
}

/// Sorts a zbus error into a [`BusError`]. `object` is the machine, image or unit that the call was about.
pub(crate) fn classify(error: &zbus::Error, service: &'static str, doing: &str, object: &str) -> BusError {
    let (name, message) = match error {
        zbus::Error::MethodError(name, message, _) => {
            (name.to_string(), message.clone().unwrap_or_else(|| name.to_string()))
        }
        zbus::Error::FDO(inner) => (
            inner.name().to_string(),
            inner.description().unwrap_or_default().to_owned(),
        ),
        zbus::Error::InputOutput(inner) => (String::new(), inner.to_string()),
        other => (String::new(), other.to_string()),
    };
    let doing = doing.to_owned();
    match name.as_str() {
        "org.freedesktop.machine1.NoSuchMachine" => BusError::NoSuchMachine(object.to_owned()),
        "org.freedesktop.machine1.NoSuchImage" => BusError::NoSuchImage(object.to_owned()),
        "org.freedesktop.systemd1.NoSuchUnit" => BusError::NoSuchUnit(object.to_owned()),
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
        | "org.freedesktop.DBus.Error.AuthFailed" => BusError::Denied { doing },
        "org.freedesktop.DBus.Error.ServiceUnknown"
        | "org.freedesktop.DBus.Error.NameHasNoOwner"
        | "org.freedesktop.DBus.Error.NoReply"
        | "org.freedesktop.DBus.Error.TimedOut"
        | "org.freedesktop.DBus.Error.Spawn.ServiceNotFound" => BusError::Unavailable {
            service,
            reason: message,
        },
        // A masked or failing machined cannot be activated: the bus passes on what systemd said.
        "org.freedesktop.systemd1.UnitMasked" | "org.freedesktop.DBus.Error.Spawn.ChildExited"
            if service == machine1::SERVICE =>
        {
            BusError::Unavailable {
                service,
                reason: message,
            }
        }
        // 262 loads a masked alias as broken; machined itself has no call of ours that makes something.
        "org.freedesktop.DBus.Error.FileExists" if service == machine1::SERVICE => BusError::Unavailable {
            service,
            reason: message,
        },
        "" if matches!(error, zbus::Error::InputOutput(_) | zbus::Error::Handshake(_)) => BusError::Unavailable {
            service,
            reason: message,
        },
        _ => BusError::Failed { doing, name, message },
    }
}

/// What has to be said of each call on which polkit may ask: zbus heeds the limit of its connection in others only.
pub(crate) trait InTime<T>: Future<Output = zbus::Result<T>> + Sized {
    /// The answer, or an error when it takes longer than a person would.
    async fn in_time(self) -> zbus::Result<T> {
        let late = |_| zbus::Error::from(io::Error::from(io::ErrorKind::TimedOut));
        tokio::time::timeout(INTERACTIVE_TIMEOUT, self).await.map_err(late)?
    }
}

impl<T, F: Future<Output = zbus::Result<T>>> InTime<T> for F {}

/// A connection to the system bus. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    connection: zbus::Connection,
}

impl Bus {
    /// Connects to the system bus.
    ///
    /// `interactive`: polkit may ask a person, so calls may take minutes.
    pub async fn system(interactive: bool) -> Result<Self, BusError> {
        let timeout = if interactive { INTERACTIVE_TIMEOUT } else { CALL_TIMEOUT };
        let connection = zbus::connection::Builder::system()
            .method_timeout(timeout)
            .build()
            .await
            .map_err(|error| BusError::Unavailable {
                service: "the system bus",
                reason: reason_of(&error),
            })?;
        Ok(Self { connection })
    }

    /// A bus that is already connected: tests hand in a fake.
    #[must_use]
    pub fn from_connection(connection: zbus::Connection) -> Self {
        Self { connection }
    }

    pub(crate) fn connection(&self) -> &zbus::Connection {
        &self.connection
    }

    /// systemd's service manager.
    pub(crate) async fn manager(&self) -> Result<systemd1::ManagerProxy<'static>, BusError> {
        systemd1::ManagerProxy::builder(&self.connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(|error| classify(&error, systemd1::SERVICE, "reach systemd", ""))
    }

    /// systemd-machined.
    pub(crate) async fn machined(&self) -> Result<machine1::ManagerProxy<'static>, BusError> {
        machine1::ManagerProxy::builder(&self.connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(|error| classify(&error, machine1::SERVICE, "reach systemd-machined", ""))
    }
}

fn reason_of(error: &zbus::Error) -> String {
    match error {
        zbus::Error::InputOutput(inner) => inner.to_string(),
        other => other.to_string(),
    }
}
