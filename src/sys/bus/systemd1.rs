//! `org.freedesktop.systemd1`, see org.freedesktop.systemd1(5): units, jobs, unit files.

use zbus::wire::{OwnedObjectPath, Variant};

use super::{Bus, BusError, InTime as _, Properties, classify};

/// The bus name.
pub(crate) const NAME: &str = "org.freedesktop.systemd1";
/// How users know it.
pub(crate) const SERVICE: &str = "systemd";

/// Symbolic links that `EnableUnitFiles` and its kin made or removed: (type, link, target).
pub(crate) type UnitFileChanges = Vec<(String, String, String)>;
/// One row of `ListUnits`: name, description, load, active, sub state, follower, path, job id, job type, job path.
pub(crate) type UnitRow = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

/// A property of a transient unit and its value.
pub(crate) type Property = (String, Variant<'static>);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(crate) trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[Property],
        auxiliary: &[(String, Vec<Property>)],
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn freeze_unit(&self, name: &str) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn thaw_unit(&self, name: &str) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[(&str, Variant<'_>)]) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<()>;
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<UnitRow>>;
    fn get_unit_processes(&self, name: &str) -> zbus::Result<Vec<(String, u32, String)>>;
    #[zbus(allow_interactive_auth)]
    fn attach_processes_to_unit(&self, name: &str, subgroup: &str, pids: &[u32]) -> zbus::Result<()>;
    fn get_unit_file_state(&self, file: &str) -> zbus::Result<String>;
    #[zbus(allow_interactive_auth)]
    fn enable_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<(bool, UnitFileChanges)>;
    #[zbus(allow_interactive_auth)]
    fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<UnitFileChanges>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;

    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn unit_path(&self) -> zbus::Result<Vec<String>>;
}

/// What a property of a unit is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `t`
    Number(u64),
    /// `u`
    Small(u32),
    /// `b`
    Boolean(bool),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(st)`
    Pairs(Vec<(String, u64)>),
}

impl From<&Setting> for Variant<'static> {
    fn from(setting: &Setting) -> Self {
        match setting.clone() {
            Setting::Number(number) => number.into(),
            Setting::Small(number) => number.into(),
            Setting::Boolean(yes) => yes.into(),
            Setting::Text(text) => text.into(),
            Setting::Bytes(bytes) => bytes.into(),
            Setting::Pairs(pairs) => pairs.into(),
        }
    }
}

/// One command of a transient unit, as `ExecStart=` and its like have it: `a(sasb)`. Nothing in it is expanded: each `$` is
/// doubled, see systemd.service(5).
///
/// Not by the flag of `ExecStartEx`: 252 writes that name into the unit's file, and cannot read it when it reloads. A
/// unit that it has not started yet then has no command, and one that runs none for its end. A `$`, `;` or backquote
/// comes back from there with a backslash before it: what we run ourselves has none.
#[must_use]
pub fn command(program: &str, arguments: &[String]) -> Variant<'static> {
    let words: Vec<String> = arguments.iter().map(|word| word.replace('$', "$$")).collect();
    vec![(program.to_owned(), words, false)].into()
}

/// `ExecStart=` of a transient unit with one command, of which nothing is expanded: its name and value.
///
/// From 257 on by the flag, which its file keeps. There a doubled `$` is doubled once more, and comes back so where systemd
/// reloads before it has started the unit.
#[must_use]
pub fn exec_start(program: &str, arguments: &[String], systemd: u32) -> (String, Variant<'static>) {
    if systemd < 257 {
        return ("ExecStart".to_owned(), command(program, arguments));
    }
    let flags = vec!["no-env-expand".to_owned()];
    let commands = vec![(program.to_owned(), arguments.to_vec(), flags)];
    ("ExecStartEx".to_owned(), commands.into())
}

/// The state of a unit, from one `GetAll` on each of its two interfaces.
#[derive(Debug, Default)]
pub struct UnitState {
    /// Properties of `org.freedesktop.systemd1.Unit`.
    pub unit: Properties,
    /// Properties of the type's own interface: `.Service`, `.Scope` or `.Slice`.
    pub detail: Properties,
}

impl UnitState {
    /// Whether the unit's processes exist: anything but `inactive` and `failed`.
    #[must_use]
    pub fn is_up(&self) -> bool {
        is_up(&self.unit.string("ActiveState"))
    }

    /// Whether it is down and stays so. Between the two halves of a restart it is down, with a job that starts it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.is_up() && !self.unit.begins_with_number("Job")
    }

    /// Whether the freezer holds it, or is about to.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.unit.string("FreezerState").starts_with("fr")
    }
}

/// Whether a unit in this `ActiveState` has processes, or is about to.
fn is_up(active_state: &str) -> bool {
    !matches!(active_state, "inactive" | "failed" | "")
}

impl Bus {
    /// systemd's major version, such as 257.
    pub async fn systemd_version(&self) -> Result<u32, BusError> {
        let doing = "read systemd's version";
        let text = self
            .manager()
            .await?
            .version()
            .await
            .map_err(|error| classify(&error, SERVICE, doing, "systemd"))?;
        super::manager::major_version(&text)
    }

    /// The state of a unit; a unit without any file is loaded as `not-found` and is no error.
    pub async fn unit_state(&self, name: &str) -> Result<UnitState, BusError> {
        let doing = format!("load unit '{name}'");
        let path = self
            .manager()
            .await?
            .load_unit(name)
            .await
            .map_err(|error| classify(&error, SERVICE, &doing, name))?;
        let kind = match name.rsplit_once('.') {
            Some((_, "scope")) => "Scope",
            Some((_, "slice")) => "Slice",
            _ => "Service",
        };
        let interfaces = [format!("{NAME}.Unit"), format!("{NAME}.{kind}")];
        let service = (NAME, SERVICE);
        let (unit, detail) = futures_util::future::try_join(
            self.properties(service, path.as_str(), &interfaces[0], name),
            self.properties(service, path.as_str(), &interfaces[1], name),
        )
        .await?;
        Ok(UnitState { unit, detail })
    }

    /// Some properties of one interface of a unit, "Unit" or "Service".
    ///
    /// Cheap: for [`Bus::unit_state`] systemd looks at unit files and control groups, which takes it milliseconds.
    pub(crate) async fn unit_properties(
        &self,
        name: &str,
        interface: &str,
        properties: &[&'static str],
    ) -> Result<Properties, BusError> {
        let doing = format!("read the state of unit '{name}'");
        let failed = |error: zbus::Error| classify(&error, SERVICE, &doing, name);
        let path = self.manager().await?.load_unit(name).await.map_err(failed)?;
        let interface = format!("{NAME}.{interface}");
        self.some_properties((NAME, SERVICE), path.as_str(), &interface, properties, name)
            .await
    }

    /// Sends a signal to the main process of a unit.
    pub(crate) async fn signal_main(&self, name: &str, signal: i32) -> Result<(), BusError> {
        let doing = format!("send a signal to unit '{name}'");
        let sent = self.manager().await?.kill_unit(name, "main", signal).in_time().await;
        sent.map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// What becomes of a unit: an item for each time that systemd says that properties of it have changed.
    pub(crate) async fn unit_changes(&self, name: &str) -> Result<zbus::fdo::PropertiesChangedStream, BusError> {
        let doing = format!("watch unit '{name}'");
        let failed = |error: zbus::Error| classify(&error, SERVICE, &doing, name);
        let path = self.manager().await?.load_unit(name).await.map_err(failed)?;
        let properties = zbus::fdo::PropertiesProxy::builder(self.connection())
            .destination(NAME)
            .path(path)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .map_err(failed)?;
        properties.receive_properties_changed().await.map_err(failed)
    }

    /// The last invocation that systemd remembers of a unit: `None` if it has forgotten the unit, and would have to load it.
    pub(crate) async fn former_invocation(&self, name: &str) -> Result<Option<String>, BusError> {
        let doing = format!("look up unit '{name}'");
        match self.manager().await?.get_unit(name).await {
            Ok(_) => Ok(Some(
                self.unit_properties(name, "Unit", &["InvocationID"])
                    .await?
                    .hex("InvocationID"),
            )),
            Err(error) => match classify(&error, SERVICE, &doing, name) {
                BusError::NoSuchUnit(_) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Whether the unit's processes exist: see [`is_up`].
    pub(crate) async fn is_unit_up(&self, name: &str) -> Result<bool, BusError> {
        Ok(is_up(
            &self
                .unit_properties(name, "Unit", &["ActiveState"])
                .await?
                .string("ActiveState"),
        ))
    }

    /// Whether the unit is down and stays so: see [`UnitState::is_over`].
    pub(crate) async fn is_unit_over(&self, name: &str) -> Result<bool, BusError> {
        Ok(!self.is_unit_up(name).await? && self.unit_state(name).await?.is_over())
    }

    /// Whether the unit's processes exist and are not on their way down.
    pub(crate) async fn is_unit_staying(&self, name: &str) -> Result<bool, BusError> {
        let state = self.unit_properties(name, "Unit", &["ActiveState"]).await?;
        let state = state.string("ActiveState");
        Ok(is_up(&state) && state != "deactivating")
    }

    /// Sets properties of a unit, loaded or not: at once, and in files that last, or with `runtime` until the next boot.
    /// All of them or, if systemd does not take one, none.
    pub(crate) async fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Setting)],
    ) -> Result<(), BusError> {
        let doing = format!("set limits of unit '{name}'");
        let variants: Vec<_> = properties
            .iter()
            .map(|(property, setting)| (*property, Variant::from(setting)))
            .collect();
        let set = self
            .manager()
            .await?
            .set_unit_properties(name, runtime, &variants)
            .in_time()
            .await;
        set.map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// Starts a unit that has no file and goes when nobody refers to it; returns the job's path.
    pub(crate) async fn start_transient(&self, unit: &str, properties: &[Property]) -> Result<String, BusError> {
        let started = self
            .manager()
            .await?
            .start_transient_unit(unit, "fail", properties, &[])
            .in_time()
            .await;
        started
            .map(|job| job.as_str().to_owned())
            .map_err(|error| classify(&error, SERVICE, &format!("start unit '{unit}'"), unit))
    }

    /// The processes of a unit: (control group, PID, command line). Sorted by control group.
    pub async fn unit_processes(&self, name: &str) -> Result<Vec<(String, u32, String)>, BusError> {
        let doing = format!("list the processes of '{name}'");
        let mut processes = self
            .manager()
            .await?
            .get_unit_processes(name)
            .await
            .map_err(|error| classify(&error, SERVICE, &doing, name))?;
        processes.sort();
        Ok(processes)
    }

    /// Moves processes into the control group of a unit that delegates it.
    pub(crate) async fn attach_processes(&self, name: &str, pids: &[u32]) -> Result<(), BusError> {
        let doing = format!("move processes into '{name}'");
        let attached = self
            .manager()
            .await?
            .attach_processes_to_unit(name, "", pids)
            .in_time()
            .await;
        attached.map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// `UnitFileState` of a unit: "enabled", "disabled", "enabled-runtime", "masked" …
    pub async fn unit_file_state(&self, name: &str) -> Result<String, BusError> {
        let doing = format!("read whether '{name}' is enabled");
        self.manager()
            .await?
            .get_unit_file_state(name)
            .await
            .map_err(|error| classify(&error, SERVICE, &doing, name))
    }

    /// The directories of unit files, what overrides first.
    pub async fn unit_search_path(&self) -> Result<Vec<String>, BusError> {
        let path = self.manager().await?.unit_path().await;
        path.map_err(|error| classify(&error, SERVICE, "read where unit files lie", ""))
    }

    /// Instances of the template that systemd has loaded: (machine, active state).
    pub(crate) async fn template_units(&self) -> Result<Vec<(String, String)>, BusError> {
        let rows = self
            .manager()
            .await?
            .list_units_by_patterns(&[], &["systemd-nspawn@*.service"])
            .await
            .map_err(|error| classify(&error, SERVICE, "list units", ""))?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let name = row
                    .0
                    .strip_prefix("systemd-nspawn@")?
                    .strip_suffix(".service")?
                    .to_owned();
                Some((name, row.3))
            })
            .collect())
    }
}
