//! Limiting a machine: properties of its unit through systemd, keys of its settings, and all of it or nothing.
//!
//! A reload does not tell the kernel what the files say: what is taken back is set once more while the unit runs, and the
//! file that systemd writes for that goes again.

mod control;
mod property;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::runtime::Handle;

use self::control::{Control, Snapshot, above, remove};
pub(super) use self::property::properties;
use self::property::{Property, again, all_again, check_host};
use super::config::files::of_machine;
use super::config::{self, Change, Changed, Wanted as Edits};
use super::enable::reload;
use super::lock::Lock;
use super::transaction::{Step, Transaction};
use super::{OpError, Places, owned};
use crate::limit::{Amount, Assignment, Key, Kind, Wanted};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::nspawn::settings::Settings;
use crate::sys::assigned::{assigned, files_of, last_word};
use crate::sys::bus::Bus;
use crate::sys::bus::systemd1::UnitState;
use crate::sys::files::{read_regular, shown};

/// What is limited, and how.
#[derive(Clone, Debug)]
pub struct Order {
    /// What is locked: the machine's name, or the slice's.
    pub subject: String,
    /// The machine whose settings may be changed; `None` for a slice.
    pub machine: Option<MachineName>,
    /// The unit.
    pub unit: String,
    /// The limits, each of another key or device.
    pub limits: Vec<Assignment>,
    /// Only until the next boot.
    pub runtime: bool,
    /// The version of systemd.
    pub systemd: u32,
    /// Without root only systemd itself is asked, and polkit decides.
    pub is_root: bool,
}

/// A file whose word counts more than the limit that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overridden {
    /// The key.
    pub key: &'static str,
    /// The file.
    pub file: PathBuf,
    /// What it says, such as `MemoryMax=300M`.
    pub says: String,
}

/// What came of an order.
#[derive(Debug, Default)]
pub struct Done {
    /// Whether anything is other than before.
    pub changed: bool,
    /// What was changed in the machine's settings.
    pub settings: Option<Changed>,
    /// Limits that will not hold after a reload.
    pub overridden: Vec<Overridden>,
}

/// systemd, for steps that run on a thread of their own.
#[derive(Clone, Debug)]
pub struct Systemd {
    /// The bus.
    pub bus: Bus,
    /// Where its answers are waited for.
    pub handle: Handle,
}

impl Systemd {
    fn state(&self, unit: &str) -> Result<UnitState, OpError> {
        Ok(self.handle.block_on(self.bus.unit_state(unit))?)
    }

    fn set(&self, order: &Order, runtime: bool, properties: &[Property]) -> Result<(), OpError> {
        let set = self.bus.set_unit_properties(&order.unit, runtime, properties);
        Ok(self.handle.block_on(set)?)
    }

    fn reload(&self) -> Result<(), OpError> {
        self.handle.block_on(reload(&self.bus))
    }
}

/// Sets limits, or leaves everything as it was. Blocks.
pub fn limit(
    order: &Order,
    places: &Places,
    systemd: &Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Done, OpError> {
    let needs_files = |limit: &Assignment| !limit.key.is_property() || limit.wanted == Wanted::Default;
    let _lock = if order.is_root {
        Some(Lock::wait(&places.runtime, &order.subject, report, cancel)?)
    } else if order.limits.iter().any(needs_files) {
        return Err(OpError::NeedsRoot { verb: "limit" });
    } else {
        None
    };
    let plan = Plan::make(order, places, systemd)?;
    let done = Mutex::default();
    let mut steps = plan.steps();
    if let Some(change) = &plan.change {
        steps.step(Step::new("change the settings", || {
            let change = std::slice::from_ref(change);
            let changed = config::change_locked(change, places, &|| systemd.reload(), report, cancel)?.pop();
            hold(&done, |done: &mut Done| done.settings = changed);
            Ok(())
        }));
    }
    steps.run(report, cancel)?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    plan.look_again(places, &mut done)?;
    Ok(done)
}

/// What [`limit`] would do, one line per step; checks all that can be checked without touching anything. Blocks.
pub fn plan(order: &Order, places: &Places, systemd: &Systemd) -> Result<Vec<String>, OpError> {
    let plan = Plan::make(order, places, systemd)?;
    let mut lines = plan.steps().describe();
    if let Some(change) = &plan.change {
        lines.extend(config::plan(std::slice::from_ref(change), places)?);
    }
    Ok(lines)
}

fn hold<T>(mutex: &Mutex<T>, change: impl FnOnce(&mut T)) {
    change(&mut mutex.lock().unwrap_or_else(PoisonError::into_inner));
}

/// What there is, and what is to be made of it.
struct Plan<'a> {
    order: &'a Order,
    systemd: &'a Systemd,
    control: Control,
    before: UnitState,
    files: Snapshot,
    properties: Vec<Property>,
    /// The keys that are set on the unit, or taken off it.
    keys: Vec<&'static Key>,
    /// Those of them that are to be as if nobody had limited them.
    defaults: Vec<&'static Key>,
    change: Option<Change>,
    /// Whether files and values were put back: once is enough.
    undone: Mutex<bool>,
}

impl<'a> Plan<'a> {
    fn make(order: &'a Order, places: &Places, systemd: &'a Systemd) -> Result<Self, OpError> {
        check_host(&order.limits, order.systemd)?;
        let control = Control::of(&order.unit, places);
        let mut keys: Vec<&'static Key> = Vec::new();
        for limit in order.limits.iter().filter(|limit| limit.key.kind != Kind::Exec) {
            if !keys.contains(&limit.key) {
                keys.push(limit.key);
            }
        }
        let is_default = |key: &&'static Key| {
            let mut limits = order.limits.iter().filter(|limit| limit.key == *key);
            limits.any(|limit| limit.wanted == Wanted::Default)
        };
        let before = systemd.state(&order.unit)?;
        let plan = Self {
            files: control.snapshot()?,
            control,
            properties: properties(&order.limits, &before.detail),
            before,
            defaults: keys.iter().copied().filter(is_default).collect(),
            keys,
            change: change_of(order),
            undone: Mutex::new(false),
            order,
            systemd,
        };
        if let Some(change) = &plan.change {
            // What is wrong with it is said before the unit is touched.
            config::plan(std::slice::from_ref(change), places)?;
        }
        Ok(plan)
    }

    fn steps(&self) -> Transaction<'_> {
        let (order, unit) = (self.order, &self.order.unit);
        let mut steps = Transaction::default();
        let lasting = if order.runtime { " until the next boot" } else { "" };
        if !self.properties.is_empty() {
            let words: Vec<&str> = self.texts(|limit| limit.key.is_property() && limit.wanted != Wanted::Default);
            let step = Step::new(format!("set {} of unit {unit}{lasting}", words.join(" ")), move || {
                self.give_all_back()?;
                self.systemd.set(order, order.runtime, &self.properties)?;
                self.was_written()?;
                self.tidy()
            });
            steps.step(step.undo(|| self.undo()));
        }
        for limit in order
            .limits
            .iter()
            .filter(|limit| matches!(limit.key.kind, Kind::Process(..)))
        {
            if let Wanted::Set(Amount::Integer(number)) = limit.wanted {
                let file = self.drop_in(limit.key);
                let step = Step::new(format!("write '{}'", shown(&file)), move || {
                    self.write_drop_in(limit.key, number, &file)
                });
                steps.step(step.undo(|| self.undo()));
            }
        }
        if !self.defaults.is_empty() {
            let names: Vec<&str> = self.defaults.iter().map(|key| key.shown()).collect();
            let step = Step::new(
                format!("take the limits {} off unit {unit}", names.join(", ")),
                move || self.take_off(),
            );
            steps.step(step.undo(|| self.undo()));
        }
        steps
    }

    fn texts(&self, wanted: impl Fn(&Assignment) -> bool) -> Vec<&str> {
        let limits = self.order.limits.iter().filter(|limit| wanted(limit));
        limits.map(|limit| limit.text.as_str()).collect()
    }

    /// Before CPUs or devices of a running machine are not limited any more, the kernel is told so.
    fn give_all_back(&self) -> Result<(), OpError> {
        let find = |name: &str| self.keys.iter().find(|key| key.property() == name);
        let all: Vec<Property> = self
            .properties
            .iter()
            .filter_map(|(name, wanted)| Some((*name, all_again(find(name)?, &self.before.detail, wanted)?)))
            .collect();
        if all.is_empty() || !self.before.is_up() {
            return Ok(());
        }
        self.systemd.set(self.order, true, &all)
    }

    /// systemd keeps quiet about a drop-in that it could not write.
    fn was_written(&self) -> Result<(), OpError> {
        for key in self.keys.iter().filter(|key| self.is_set(key)) {
            let own = self.control.of_key(key, &self.files)?;
            if !own.iter().any(|(path, is_new)| *is_new && self.is_result(path)) {
                let place = if self.order.runtime {
                    &self.control.runtime
                } else {
                    &self.control.lasting
                };
                return Err(OpError::Option {
                    message: format!(
                        "systemd could not write the limit {} to '{}'",
                        key.shown(),
                        shown(place)
                    ),
                    hint: "is the file system full, or read-only?".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Whether what was asked for stands in such a file.
    fn is_result(&self, path: &Path) -> bool {
        self.order.runtime || path.starts_with(&self.control.lasting)
    }

    fn is_set(&self, key: &'static Key) -> bool {
        key.is_property() && !self.defaults.contains(&key)
    }

    /// Removes what would say something else after a reload: `MemoryMax=50%` is in another file than `MemoryMax=1G`, and a
    /// file in /etc hides one of the same name in /run. A limit that is none needs no file.
    fn tidy(&self) -> Result<(), OpError> {
        if !self.order.is_root {
            return Ok(());
        }
        let mut stale = false;
        let now = self.systemd.state(&self.order.unit)?;
        let all = files_of(&now);
        for key in self.keys.iter().filter(|key| self.is_set(key)) {
            let mut own = self.control.of_key(key, &self.files)?;
            // What was there before goes first: a new file may take its name.
            own.sort_by_key(|(_, is_new)| *is_new);
            let lasts = |path: &Path| path.starts_with(&self.control.lasting);
            let others = all.iter().filter(|file| !own.iter().any(|(path, _)| path == *file));
            let said_elsewhere = others.into_iter().any(|file| !assigned(file, key.directive).is_empty());
            let has_lasting = own.iter().any(|(path, is_new)| lasts(path) && !is_new);
            for (path, is_new) in &own {
                let counts = *is_new && self.is_result(path);
                let needless = if counts {
                    self.is_needless(key, &now) && !said_elsewhere && !(self.order.runtime && has_lasting)
                } else {
                    !self.order.runtime || !lasts(path)
                };
                if needless {
                    remove(path)?;
                    stale = true;
                } else if counts && self.order.runtime && has_lasting {
                    above(path)?;
                    stale = true;
                } else if counts {
                    owned::mark(path, &read_regular(path, 1 << 20)?);
                }
            }
        }
        if stale { self.systemd.reload() } else { Ok(()) }
    }

    /// Whether a key has no limit now, and would have none without a file.
    fn is_needless(&self, key: &Key, now: &UnitState) -> bool {
        use crate::sys::bus::systemd1::Setting;
        // A unit gets a limit of tasks from systemd itself.
        if key.kind == Kind::Tasks {
            return false;
        }
        let unlimited = |limit: &&Assignment| match &limit.wanted {
            Wanted::Set(amount) => key.is_unlimited(amount),
            Wanted::Default => false,
        };
        match now.detail.setting(key.property()) {
            Some(Setting::Pairs(devices)) => devices.is_empty(),
            _ => self
                .order
                .limits
                .iter()
                .any(|limit| limit.key == key && unlimited(&limit)),
        }
    }

    /// Removes the files of keys, and brings the running unit to what is said without them.
    fn take_off(&self) -> Result<(), OpError> {
        let mut wanted = self.control.snapshot()?;
        for key in &self.defaults {
            for (path, _) in self.control.of_key(key, &self.files)? {
                if !self.order.runtime || !path.starts_with(&self.control.lasting) {
                    wanted.remove(&path);
                }
            }
        }
        self.settle(&wanted, &self.defaults)
    }

    fn undo(&self) -> Result<(), OpError> {
        let mut undone = self.undone.lock().unwrap_or_else(PoisonError::into_inner);
        if *undone {
            return Ok(());
        }
        *undone = true;
        if !self.order.is_root {
            // systemd has set all or none, and there was nothing else to do.
            return Ok(());
        }
        self.settle(&self.files, &self.keys)
    }

    /// Makes the files what they are to be, has systemd read them, and tells the kernel.
    fn settle(&self, wanted: &Snapshot, keys: &[&'static Key]) -> Result<(), OpError> {
        let former = self.systemd.state(&self.order.unit)?;
        self.control.restore(wanted, keys)?;
        self.systemd.reload()?;
        let now = self.systemd.state(&self.order.unit)?;
        let values = again(keys, &former.detail, &now.detail);
        if !now.is_up() || values.is_empty() {
            return Ok(());
        }
        self.systemd.set(self.order, true, &values)?;
        self.control.restore(wanted, keys)?;
        // Even if the files are the same: systemd would call them newer than what it has read.
        self.systemd.reload()
    }

    /// `SetUnitProperties` does not take this: the file is as systemd would write it.
    fn write_drop_in(&self, key: &Key, number: i32, file: &Path) -> Result<(), OpError> {
        for (path, _) in self.control.of_key(key, &self.files)? {
            if path != file && (!self.order.runtime || !path.starts_with(&self.control.lasting)) {
                remove(&path)?;
            }
        }
        owned::write(file, format!("[Service]\n{}={number}\n", key.directive).as_bytes())?;
        self.systemd.reload()
    }

    fn drop_in(&self, key: &Key) -> PathBuf {
        let (directory, number) = if self.order.runtime {
            (&self.control.runtime, 60)
        } else {
            (&self.control.lasting, 50)
        };
        directory.join(format!("{number}-{}.conf", key.directive))
    }

    /// The payload is given the OOM score of the settings, if they have one.
    fn score_of_settings(&self, places: &Places) -> Option<Overridden> {
        const KEY: &str = "OOMScoreAdjust";
        let limit = self.order.limits.iter().find(|limit| limit.key.directive == KEY)?;
        let file = of_machine(self.order.machine.as_ref()?, places).into_iter().next()?;
        let document = Document::from_bytes(file.read().ok()?);
        let settings = Settings::effective(&document, self.order.systemd, file.trusted);
        let value = settings.value("Exec", KEY)?;
        let says = format!("{KEY}={value}");
        (limit.wanted != Wanted::Default).then_some(Overridden {
            key: limit.key.shown(),
            file: file.path,
            says,
        })
    }

    /// What holds now, as systemd and the files say it.
    fn look_again(&self, places: &Places, done: &mut Done) -> Result<(), OpError> {
        done.overridden.extend(self.score_of_settings(places));
        let now = self.systemd.state(&self.order.unit)?;
        let after = self.control.snapshot()?;
        let has_changed =
            |key: &&'static Key| self.before.detail.setting(key.property()) != now.detail.setting(key.property());
        let in_settings = done.settings.as_ref().is_some_and(|changed| changed.number.is_some());
        done.changed = in_settings || !control::same(&self.files, &after) || self.keys.iter().any(has_changed);
        let files = files_of(&now);
        for limit in self.order.limits.iter().filter(|limit| limit.key.kind != Kind::Exec) {
            let (key, Wanted::Set(amount)) = (limit.key, &limit.wanted) else {
                continue;
            };
            let own: Vec<PathBuf> = self
                .control
                .of_key(key, &self.files)?
                .into_iter()
                .map(|(path, _)| path)
                .collect();
            let Some(file) = last_word(&files, key.directive) else {
                continue;
            };
            let value = assigned(file, key.directive).pop().unwrap_or_default();
            let said = key.amount(&value);
            let same = said.as_ref() == Some(amount);
            // Before 253 systemd rounds `CPUQuota=12.5%` where it writes it down. What it writes of several devices is all right.
            let is_number = matches!(said, Some(Amount::Number(_) | Amount::Part(_)));
            if own.iter().any(|path| path == file) && !is_number {
                continue;
            }
            if !same && !done.overridden.iter().any(|other| other.key == key.shown()) {
                done.overridden.push(Overridden {
                    key: key.shown(),
                    file: file.to_owned(),
                    says: format!("{}={value}", key.directive),
                });
            }
        }
        Ok(())
    }
}

/// The change of the machine's settings that the limits ask for, if they ask for one.
fn change_of(order: &Order) -> Option<Change> {
    let edits: Vec<Edit> = order
        .limits
        .iter()
        .filter(|limit| limit.key.kind == Kind::Exec)
        .map(|limit| {
            let (section, key) = ("Exec".to_owned(), limit.key.directive.to_owned());
            match &limit.wanted {
                Wanted::Set(Amount::Word(value)) if !value.is_empty() => Edit::Set {
                    section,
                    key,
                    value: value.clone(),
                },
                _ => Edit::Reset { section, key },
            }
        })
        .collect();
    if edits.is_empty() {
        return None;
    }
    let words = order.limits.iter().filter(|limit| limit.key.kind == Kind::Exec);
    let words: Vec<&str> = words.map(|limit| limit.text.as_str()).collect();
    Some(Change {
        name: order.machine.clone()?,
        wanted: Edits::Edits {
            settings: edits,
            drop_ins: Vec::new(),
        },
        what: format!("limit {}", words.join(" ")),
        systemd: order.systemd,
    })
}
