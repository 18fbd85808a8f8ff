//! `org.freedesktop.machine1`, see org.freedesktop.machine1(5): registered machines and images.

use std::os::fd::OwnedFd;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, select_all};
use zbus::wire::OwnedObjectPath;

use super::{Bus, BusError, InTime as _, Properties, classify};

/// The bus name.
pub(crate) const NAME: &str = "org.freedesktop.machine1";
/// How users know it.
pub(crate) const SERVICE: &str = "systemd-machined";

/// One row of `ListMachines`: name, class, service, object path.
pub(crate) type MachineRow = (String, String, String, OwnedObjectPath);
/// One row of `ListImages`: name, type, read-only, created and modified (µs since 1970), usage (bytes), object path.
pub(crate) type ImageRow = (String, String, bool, u64, u64, u64, OwnedObjectPath);

#[zbus::proxy(
    interface = "org.freedesktop.machine1.Manager",
    default_service = "org.freedesktop.machine1",
    default_path = "/org/freedesktop/machine1"
)]
pub(crate) trait Manager {
    fn list_machines(&self) -> zbus::Result<Vec<MachineRow>>;
    fn list_images(&self) -> zbus::Result<Vec<ImageRow>>;
    fn get_image(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn kill_machine(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn mark_image_read_only(&self, name: &str, read_only: bool) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn set_image_limit(&self, name: &str, bytes: u64) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn open_machine_shell(
        &self,
        name: &str,
        user: &str,
        path: &str,
        args: &[String],
        environment: &[String],
    ) -> zbus::Result<(zbus::OwnedFd, String)>;
    #[zbus(allow_interactive_auth)]
    fn open_machine_login(&self, name: &str) -> zbus::Result<(zbus::OwnedFd, String)>;
    #[zbus(name = "GetMachineByPID")]
    fn get_machine_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn register_machine(
        &self,
        name: &str,
        id: &[u8],
        service: &str,
        class: &str,
        leader: u32,
        root_directory: &str,
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn unregister_machine(&self, name: &str) -> zbus::Result<()>;
    fn get_machine_addresses(&self, name: &str) -> zbus::Result<Vec<(i32, Vec<u8>)>>;
    #[zbus(name = "GetMachineOSRelease")]
    fn get_machine_os_release(&self, name: &str) -> zbus::Result<std::collections::HashMap<String, String>>;

    #[zbus(signal)]
    fn machine_new(&self, machine: String, path: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn machine_removed(&self, machine: String, path: OwnedObjectPath) -> zbus::Result<()>;
}

/// A registered machine, from one `GetAll`.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The machine's name.
    pub name: String,
    /// "container" or "vm".
    pub class: String,
    /// What registered it: "systemd-nspawn", "libvirt-qemu" …
    pub service: String,
    /// The unit it runs in: a service or a scope.
    pub unit: String,
    /// PID of the leader, in the host's namespace; 0 if machined knows none.
    pub leader: u32,
    /// "opening", "running" or "closing".
    pub state: String,
    /// µs since 1970 when it was registered.
    pub since: Option<u64>,
    /// Its root on the host, empty for disk images.
    pub root_directory: String,
    /// 128-bit id in hexadecimal: the machine's own machine-id, or zeros.
    pub id: String,
}

/// What machined knows of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageState {
    /// Where it lies.
    pub path: String,
    /// "directory", "subvolume", "raw" or "block".
    pub kind: String,
    /// Bytes that it takes, where the filesystem counts them: a subvolume with quotas, or a disk image.
    pub used: Option<u64>,
    /// Bytes that a subvolume may take.
    pub limit: Option<u64>,
}

impl Bus {
    /// All registered machines, `.host` not among them.
    pub async fn machines(&self) -> Result<Vec<MachineRow>, BusError> {
        let mut rows = self
            .machined()
            .await?
            .list_machines()
            .await
            .map_err(|error| classify(&error, SERVICE, "list machines", ""))?;
        rows.retain(|row| row.0 != ".host");
        Ok(rows)
    }

    /// What machined says from now on of machines that come and go: (name, whether it has come). Ends with the connection.
    pub async fn comings_and_goings(
        &self,
    ) -> Result<impl futures_util::Stream<Item = (String, bool)> + use<>, BusError> {
        use futures_util::StreamExt as _;
        let failed = |error: zbus::Error| classify(&error, SERVICE, "listen to systemd-machined", "");
        let machined = self.machined().await?;
        let came = machined.receive_machine_new().await.map_err(failed)?;
        let went = machined.receive_machine_removed().await.map_err(failed)?;
        let came = came.filter_map(|signal| async move { Some((signal.args().ok()?.machine.clone(), true)) });
        let went = went.filter_map(|signal| async move { Some((signal.args().ok()?.machine.clone(), false)) });
        Ok(futures_util::stream::select(came, went))
    }

    /// What machined knows of the machine behind `path`.
    pub async fn registered_at(&self, name: &str, path: &str) -> Result<Registered, BusError> {
        let p = self.machine_properties(name, path).await?;
        Ok(Registered {
            name: name.to_owned(),
            class: p.string("Class"),
            service: p.string("Service"),
            unit: p.string("Unit"),
            leader: p.number("Leader").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            state: p.string("State"),
            since: p.number("Timestamp"),
            root_directory: p.string("RootDirectory"),
            id: p.hex("Id"),
        })
    }

    /// An item for each time that the machine comes or goes, and when machined itself has come again.
    pub(crate) async fn machine_changes(&self, name: &str) -> Result<BoxStream<'static, ()>, BusError> {
        let failed = |error: zbus::Error| classify(&error, SERVICE, &format!("watch machine '{name}'"), name);
        let machined = self.machined().await?;
        let new = machined
            .receive_machine_new_with_args(&[(0, name)])
            .await
            .map_err(failed)?;
        let removed = machined
            .receive_machine_removed_with_args(&[(0, name)])
            .await
            .map_err(failed)?;
        let owners = machined.inner().receive_owner_changed().await.map_err(failed)?;
        // It goes when it has nothing to do; a call would only have it come again.
        let owners = owners.filter_map(|owner| std::future::ready(owner.map(drop)));
        let streams = [new.map(drop).boxed(), removed.map(drop).boxed(), owners.boxed()];
        Ok(select_all(streams).boxed())
    }

    /// What machined knows of a machine; [`BusError::NoSuchMachine`] if it is not registered.
    pub async fn registered(&self, name: &str) -> Result<Registered, BusError> {
        self.registered_at(name, &machine_object(name)).await
    }

    /// The name of the machine that a process belongs to, if it is one's.
    pub(crate) async fn machine_of(&self, pid: u32) -> Result<Option<String>, BusError> {
        let doing = format!("look up the machine of process {pid}");
        let object = match self.machined().await?.get_machine_by_pid(pid).await {
            Ok(object) => object,
            Err(error) => match classify(&error, SERVICE, &doing, "") {
                BusError::Failed { name, .. } if name.ends_with(".NoMachineForPID") => return Ok(None),
                error => return Err(error),
            },
        };
        let found = self.machine_properties("", object.as_str()).await?;
        Ok(Some(found.string("Name")).filter(|name| name != ".host"))
    }

    /// Registers a machine with this leader, which has the unit that its leader is in.
    pub(crate) async fn register_machine(&self, name: &str, class: &str, leader: u32) -> Result<(), BusError> {
        let doing = format!("register machine '{name}'");
        let machined = self.machined().await?;
        let registered = machined
            .register_machine(name, &[], "machinist", class, leader, "")
            .in_time()
            .await;
        registered
            .map(drop)
            .map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// Has machined forget a machine, which goes on.
    pub(crate) async fn unregister_machine(&self, name: &str) -> Result<(), BusError> {
        let doing = format!("unregister machine '{name}'");
        let gone = self.machined().await?.unregister_machine(name).in_time().await;
        gone.map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// All properties machined has of a machine.
    pub async fn registered_properties(&self, name: &str) -> Result<Properties, BusError> {
        self.machine_properties(name, &machine_object(name)).await
    }

    async fn machine_properties(&self, name: &str, path: &str) -> Result<Properties, BusError> {
        let interface = format!("{NAME}.Machine");
        match self.properties((NAME, SERVICE), path, &interface, name).await {
            Err(BusError::Failed { name: error, .. }) if error == "org.freedesktop.DBus.Error.UnknownObject" => {
                Err(BusError::NoSuchMachine(name.to_owned()))
            }
            other => other,
        }
    }

    /// All images machined knows but hidden ones, as machinectl shows them.
    pub async fn images(&self) -> Result<Vec<ImageRow>, BusError> {
        let mut rows = self
            .machined()
            .await?
            .list_images()
            .await
            .map_err(|error| classify(&error, SERVICE, "list images", ""))?;
        rows.retain(|row| !row.0.starts_with('.'));
        Ok(rows)
    }

    /// Sends a signal to a machine: `whom` is "leader" or "all".
    pub async fn kill_machine(&self, name: &str, whom: &str, signal: i32) -> Result<(), BusError> {
        let doing = format!("send signal {signal} to machine '{name}'");
        self.machined()
            .await?
            .kill_machine(name, whom, signal)
            .in_time()
            .await
            .map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// Has the machine's systemd run a program on a new terminal in a session of that user; returns the terminal's master.
    pub async fn open_machine_shell(
        &self,
        name: &str,
        user: &str,
        path: &str,
        args: &[String],
        environment: &[String],
    ) -> Result<OwnedFd, BusError> {
        let doing = format!("run a command in machine '{name}'");
        let (master, _) = self
            .machined()
            .await?
            .open_machine_shell(name, user, path, args, environment)
            .in_time()
            .await
            .map_err(|error| classify(&error, SERVICE, &doing, name))?;
        Ok(master.into())
    }

    /// Has the machine's systemd ask for a login on a new terminal; returns the terminal's master.
    pub async fn open_machine_login(&self, name: &str) -> Result<OwnedFd, BusError> {
        let doing = format!("open a login in machine '{name}'");
        let opened = self.machined().await?.open_machine_login(name).in_time().await;
        let (master, _) = opened.map_err(|error| classify(&error, SERVICE, &doing, name))?;
        Ok(master.into())
    }

    /// Makes an image read-only, or writable, as systemd-nspawn and machinectl see it.
    pub(crate) async fn mark_image_read_only(&self, name: &str, read_only: bool) -> Result<(), BusError> {
        let doing = format!(
            "make image '{name}' {}",
            if read_only { "read-only" } else { "writable" }
        );
        let marked = self
            .machined()
            .await?
            .mark_image_read_only(name, read_only)
            .in_time()
            .await;
        marked.map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// Sets how many bytes an image may take that is a subvolume of btrfs; `None` for no limit.
    pub(crate) async fn set_image_limit(&self, name: &str, bytes: Option<u64>) -> Result<(), BusError> {
        let doing = format!("limit image '{name}'");
        let machined = self.machined().await?;
        let set = machined
            .set_image_limit(name, bytes.unwrap_or(u64::MAX))
            .in_time()
            .await;
        set.map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// What machined knows of an image.
    pub(crate) async fn image_at(&self, object: &str, name: &str) -> Result<ImageState, BusError> {
        Ok(ImageState::of(&self.image_properties(object, name).await?))
    }

    /// What machined knows of the image of that name, if there is one.
    pub(crate) async fn find_image_state(&self, name: &str) -> Result<Option<ImageState>, BusError> {
        Ok(self.find_image(name).await?.as_ref().map(ImageState::of))
    }

    async fn image_properties(&self, object: &str, name: &str) -> Result<Properties, BusError> {
        let interface = format!("{NAME}.Image");
        self.properties((NAME, SERVICE), object, &interface, name).await
    }

    /// Where the image of that name lies, if there is one.
    pub(crate) async fn find_image_path(&self, name: &str) -> Result<Option<String>, BusError> {
        let found = self.find_image(name).await?;
        Ok(found.map(|image| image.string("Path")))
    }

    /// Whether the image of that name is read-only, if there is one.
    pub(crate) async fn image_is_read_only(&self, name: &str) -> Result<Option<bool>, BusError> {
        let found = self.find_image(name).await?;
        Ok(found.map(|image| image.boolean("ReadOnly")))
    }

    async fn find_image(&self, name: &str) -> Result<Option<Properties>, BusError> {
        let doing = format!("look up image '{name}'");
        match self.machined().await?.get_image(name).await {
            Ok(object) => self.image_properties(object.as_str(), name).await.map(Some),
            Err(error) => match classify(&error, SERVICE, &doing, name) {
                BusError::NoSuchImage(_) => Ok(None),
                error => Err(error),
            },
        }
    }
}

impl ImageState {
    fn of(image: &Properties) -> Self {
        Self {
            path: image.string("Path"),
            kind: image.string("Type"),
            used: image.number("Usage"),
            limit: image.number("Limit"),
        }
    }
}

/// The object of a machine that may be registered. machined would tell it, for one more call: it is the name as
/// `sd_bus_path_encode(3)` has it.
fn machine_object(name: &str) -> String {
    use std::fmt::Write as _;
    let mut path = "/org/freedesktop/machine1/machine/".to_owned();
    for (place, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (place > 0 && byte.is_ascii_digit()) {
            path.push(byte.into());
        } else {
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_systemd_does() {
        let of = |name: &str| machine_object(name).rsplit('/').next().unwrap().to_owned();
        assert_eq!(of("web"), "web");
        assert_eq!(of("web-1.example"), "web_2d1_2eexample");
        assert_eq!(of("9front"), "_39front");
    }
}
