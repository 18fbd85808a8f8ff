//! Stopping machines: politely, with force, at once; and rebooting them from inside.

use std::time::Duration;

use nix::libc;
use tokio::time::{Instant, sleep, timeout};

use super::boot::{is_preparing, start_failed, wait_for_pid1};
use super::freeze::release;
use super::start::{find_image, find_running};
use super::{OpError, diagnose};
use crate::machine::MachineName;
use crate::sys::bus::jobs::{Goal, Jobs};
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::systemd1::{Setting, UnitState};
use crate::sys::bus::{Bus, BusError, InTime as _, classify, systemd1};
use crate::sys::guest::Leader;

/// How long a forced stop may take before SIGKILL follows.
const FORCE_PATIENCE: Duration = Duration::from_secs(10);
/// How often systemd-nspawn is told again: a second SIGTERM that arrives before it has read the first is lost.
const FORCE_INTERVAL: Duration = Duration::from_millis(100);

/// How `stop` goes about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct StopOptions {
    /// How long the guest may take to power off; `None` for [`PATIENCE`], or for as long as its unit gives it.
    pub timeout: Option<Duration>,
    /// After that, do as [`terminate`] does.
    pub force: bool,
}

/// How long a guest may take to power off if nobody says.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// What passes besides the unit's own time: until init listens, and until systemd has ended what has not stopped.
const GRACE: Duration = Duration::from_secs(10);

/// How long to wait for a unit to stop; `None` for ever.
fn patience(unit: &UnitState, options: StopOptions) -> Option<Duration> {
    if options.timeout.is_some() {
        return options.timeout;
    }
    match unit.detail.setting("TimeoutStopUSec") {
        Some(Setting::Number(u64::MAX)) => None,
        Some(Setting::Number(micros)) if Duration::from_micros(micros) > PATIENCE => {
            Some(Duration::from_micros(micros) + GRACE)
        }
        _ => Some(PATIENCE),
    }
}

/// How long a guest's init may take from its first instruction until it listens to signals.
const INIT_PATIENCE: Duration = Duration::from_secs(5);

/// What `stop` found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The guest powered off.
    Cleanly,
    /// It was made to.
    Forced,
    /// It did not run.
    Already,
}

/// The machine's unit as it is now, and what machined knows.
struct Running {
    unit: String,
    state: UnitState,
    registered: Option<Registered>,
}

impl Running {
    async fn find(bus: &Bus, name: &MachineName) -> Result<Option<Self>, OpError> {
        let registered = match bus.registered(name.as_str()).await {
            Ok(registered) => Some(registered),
            Err(BusError::NoSuchMachine(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let unit = registered
            .as_ref()
            .map_or_else(|| name.unit(), |registered| registered.unit.clone());
        let state = bus.unit_state(&unit).await?;
        if registered.is_none() && !state.is_up() {
            find_image(bus, name).await?;
            return Ok(None);
        }
        Ok(Some(Self {
            unit,
            state,
            registered,
        }))
    }

    /// A frozen machine cannot stop.
    async fn thaw(&self, bus: &Bus, name: &MachineName) -> Result<(), OpError> {
        let leader = self.registered.as_ref().map(|registered| registered.leader);
        release(bus, name, &self.unit, &self.state, leader).await
    }

    /// A service has a supervisor that powers the guest off; a scope was made by somebody else's.
    fn has_supervisor(&self) -> bool {
        self.unit.ends_with(".service")
    }
}

/// The unit that a stop would be about; `None` if nothing runs.
///
/// # Errors
/// [`OpError::NoImage`] if there is no such machine.
pub async fn unit_to_stop(bus: &Bus, name: &MachineName) -> Result<Option<String>, OpError> {
    Ok(Running::find(bus, name).await?.map(|running| running.unit))
}

/// The same, and how long [`stop`] would wait for it; `None` for ever.
pub async fn plan_stop(
    bus: &Bus,
    name: &MachineName,
    options: StopOptions,
) -> Result<Option<(String, Option<Duration>)>, OpError> {
    let running = Running::find(bus, name).await?;
    Ok(running.map(|running| {
        let patience = patience(&running.state, options);
        (running.unit, patience)
    }))
}

/// Powers a machine off cleanly and waits for it.
///
/// # Errors
/// [`OpError::NoImage`] if there is no such machine, [`OpError::TimedOut`] if the guest does not power off in time and
/// `force` is not set; it may still do so later.
pub async fn stop(bus: &Bus, jobs: &Jobs, name: &MachineName, options: StopOptions) -> Result<Stopped, OpError> {
    match Running::find(bus, name).await? {
        Some(running) => power_off(bus, jobs, name, &running, options).await,
        None => Ok(Stopped::Already),
    }
}

/// The same for whatever of that name runs in this unit: it may have no image.
pub(super) async fn stop_in(bus: &Bus, jobs: &Jobs, name: &MachineName, unit: &str) -> Result<Stopped, OpError> {
    let state = bus.unit_state(unit).await?;
    if state.is_over() {
        return Ok(Stopped::Already);
    }
    let registered = bus.registered(name.as_str()).await.ok();
    let running = Running {
        unit: unit.to_owned(),
        state,
        registered: registered.filter(|registered| registered.unit == unit),
    };
    match power_off(bus, jobs, name, &running, StopOptions::default()).await {
        Err(OpError::Bus(BusError::NoSuchUnit(_))) => Ok(Stopped::Already),
        stopped => stopped,
    }
}

async fn power_off(
    bus: &Bus,
    jobs: &Jobs,
    name: &MachineName,
    running: &Running,
    options: StopOptions,
) -> Result<Stopped, OpError> {
    running.thaw(bus, name).await?;
    if let Some(registered) = &running.registered {
        let part = options.timeout.map_or(INIT_PATIENCE, |limit| limit / 4);
        wait_for_init(registered, INIT_PATIENCE.min(part)).await;
    }
    let polite = async {
        if running.has_supervisor() {
            let job = stop_job(bus, name, &running.unit).await?;
            finish(
                bus,
                name,
                &running.unit,
                &jobs.wait(&job, &running.unit, Goal::Down).await,
            )
            .await
        } else {
            let signal = poweroff_signal(name, running.registered.as_ref())?;
            match bus.kill_machine(name.as_str(), "leader", signal).await {
                Ok(()) | Err(BusError::NoSuchMachine(_)) => wait_until_gone(bus, name, &running.unit).await,
                Err(error) => Err(error.into()),
            }
        }
    };
    let Some(patience) = patience(&running.state, options) else {
        return polite.await.map(|()| Stopped::Cleanly);
    };
    match timeout(patience, polite).await {
        Ok(done) => done.map(|()| Stopped::Cleanly),
        Err(_) if options.force => take_down(bus, jobs, name, running).await.map(|()| Stopped::Forced),
        Err(_) => Err(OpError::TimedOut {
            name: name.to_string(),
            state: "has not stopped",
            after: patience,
            hint: format!(
                "it may still be shutting down: see `machinist status {name}`, or `machinist stop --force {name}`"
            ),
        }),
    }
}

/// Takes a machine down at once, in the way that leaves nothing behind.
pub async fn terminate(bus: &Bus, jobs: &Jobs, name: &MachineName) -> Result<Stopped, OpError> {
    let Some(running) = Running::find(bus, name).await? else {
        return Ok(Stopped::Already);
    };
    running.thaw(bus, name).await?;
    take_down(bus, jobs, name, &running).await.map(|()| Stopped::Forced)
}

/// Reboots the guest without leaving its unit: its init is asked to, and the unit's next invocation is waited for.
///
/// # Errors
/// [`OpError::NotRunning`], [`OpError::TimedOut`].
pub async fn reboot_inside(bus: &Bus, name: &MachineName, limit: Duration) -> Result<(), OpError> {
    let registered = find_running(bus, name).await?;
    let state = bus.unit_state(&registered.unit).await?;
    release(bus, name, &registered.unit, &state, Some(registered.leader)).await?;
    wait_for_init(&registered, INIT_PATIENCE).await;
    let before = state.unit.hex("InvocationID");
    bus.kill_machine(name.as_str(), "leader", reboot_signal(name, &registered)?)
        .await?;
    let came_back = async {
        loop {
            if let Ok(now) = bus.registered(name.as_str()).await {
                let state = bus.unit_state(&now.unit).await?;
                // A container of the template gets a new invocation; in a scope only the leader changes.
                let is_new = state.unit.hex("InvocationID") != before || now.leader != registered.leader;
                if is_new && state.unit.string("ActiveState") == "active" {
                    return wait_for_pid1(bus, name).await.map(drop);
                }
            }
            // It went down as asked, and cannot come up again.
            let state = bus.unit_state(&registered.unit).await?;
            let invocation = state.unit.hex("InvocationID");
            if !invocation.is_empty() && invocation != before && state.unit.string("ActiveState") == "failed" {
                return Err(start_failed(bus, name, &registered.unit, "failed", None).await);
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(limit, came_back).await.unwrap_or_else(|_| {
        Err(OpError::TimedOut {
            name: name.to_string(),
            state: "has not rebooted",
            after: limit,
            hint: format!(
                "its init may ignore the request: `machinist restart {name}` stops and starts it from outside"
            ),
        })
    })
}

/// SIGTERM to the supervisor makes it ask the guest; a second one makes it end the guest at once and clean up.
async fn take_down(bus: &Bus, jobs: &Jobs, name: &MachineName, running: &Running) -> Result<(), OpError> {
    let unit = running.unit.as_str();
    if !running.has_supervisor() {
        kill_unit(bus, name, unit, "all", libc::SIGKILL).await?;
        return within(FORCE_PATIENCE, name, unit, wait_until_gone(bus, name, unit)).await;
    }
    let job = stop_job(bus, name, unit).await?;
    let ended = jobs.wait(&job, unit, Goal::Down);
    let mut ended = std::pin::pin!(ended);
    let deadline = Instant::now() + FORCE_PATIENCE;
    loop {
        match timeout(FORCE_INTERVAL, ended.as_mut()).await {
            Ok(result) => {
                finish(bus, name, unit, &result).await?;
                // Without the right to it the unit stays in `list -a` as failed, and the machine is down all the same.
                let _ = forget_failure(bus, unit).await;
                return Ok(());
            }
            Err(_) if Instant::now() < deadline => kill_unit(bus, name, unit, "main", libc::SIGTERM).await?,
            // A supervisor that does not listen: it may be stopped, or hang in the kernel.
            Err(_) => kill_unit(bus, name, unit, "all", libc::SIGKILL).await?,
        }
        if Instant::now() > deadline + FORCE_PATIENCE {
            return Err(hangs(FORCE_PATIENCE * 2, name, unit));
        }
    }
}

/// A supervisor that was told twice fails, which is what was wanted of it: that failure is nobody's to look into. Nor is
/// one of a machine that is removed.
pub(crate) async fn forget_failure(bus: &Bus, unit: &str) -> Result<(), OpError> {
    let reset = bus.manager().await?.reset_failed_unit(unit).in_time().await;
    match reset.map_err(|error| classify(&error, systemd1::SERVICE, &format!("reset unit {unit}"), unit)) {
        Ok(()) | Err(BusError::NoSuchUnit(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn stop_job(bus: &Bus, name: &MachineName, unit: &str) -> Result<String, OpError> {
    let doing = format!("stop machine '{name}'");
    let job = bus
        .manager()
        .await?
        .stop_unit(unit, "replace")
        .in_time()
        .await
        .map_err(|error| classify(&error, systemd1::SERVICE, &doing, unit))?;
    Ok(job.as_str().to_owned())
}

/// A stop job ends well even if the unit then counts as failed: what matters is that nothing runs.
async fn finish(bus: &Bus, name: &MachineName, unit: &str, result: &str) -> Result<(), OpError> {
    if result == "done" {
        return within(FORCE_PATIENCE, name, unit, wait_until_gone(bus, name, unit)).await;
    }
    let diagnosis = Box::new(diagnose::failed_job(bus, name.as_str(), unit, result, None).await);
    Err(OpError::Job {
        verb: "stop",
        name: name.to_string(),
        diagnosis,
    })
}

/// Puts a limit to a wait for what nothing can be done about any more.
async fn within(
    limit: Duration,
    name: &MachineName,
    unit: &str,
    wait: impl Future<Output = Result<(), OpError>>,
) -> Result<(), OpError> {
    let waited = timeout(limit, wait).await;
    waited.unwrap_or_else(|_| Err(hangs(limit, name, unit)))
}

fn hangs(after: Duration, name: &MachineName, unit: &str) -> OpError {
    OpError::TimedOut {
        name: name.to_string(),
        state: "has not stopped",
        after,
        hint: format!("a process of it hangs in the kernel: see `systemctl status {unit}`"),
    }
}

/// Waits at most so long until a machine is down by itself, and takes it down then.
pub(super) async fn let_end(
    bus: &Bus,
    jobs: &Jobs,
    name: &MachineName,
    unit: &str,
    patience: Duration,
) -> Result<(), OpError> {
    if let Ok(gone) = timeout(patience, wait_until_gone(bus, name, unit)).await {
        return gone;
    }
    // Not whatever has the name by now.
    let running = Running {
        unit: unit.to_owned(),
        state: bus.unit_state(unit).await?,
        registered: None,
    };
    match take_down(bus, jobs, name, &running).await {
        Err(OpError::Bus(BusError::NoSuchUnit(_))) => Ok(()),
        taken_down => taken_down,
    }
}

/// machined unregisters a machine a moment after its unit is down.
async fn wait_until_gone(bus: &Bus, name: &MachineName, unit: &str) -> Result<(), OpError> {
    let mut pause = Duration::from_millis(1);
    loop {
        let registered = match bus.registered(name.as_str()).await {
            // Another unit may have the name by now.
            Ok(registered) => registered.unit == unit,
            Err(BusError::NoSuchMachine(_)) => false,
            Err(error) => return Err(error.into()),
        };
        if !registered && !bus.is_unit_up(unit).await? {
            return Ok(());
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until the guest's init listens to its signals: the kernel drops those that come before, and systemd-nspawn
/// takes a second request for one to end the guest at once.
async fn wait_for_init(registered: &Registered, patience: Duration) {
    let listens = async {
        let mut pause = Duration::from_millis(1);
        let Some(leader) = Leader::open(registered.leader) else {
            return;
        };
        while let Some(command) = leader.command_name() {
            let signal = known_init(Some(&command)).poweroff_signal();
            if !is_preparing(&command) && signal.is_none_or(|signal| leader.minds(signal) != Some(false)) {
                return;
            }
            // There is no signal for sigaction(2).
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    };
    // One that never does is asked all the same: it may have been given a signal of its own.
    let _ = timeout(patience, listens).await;
}

async fn kill_unit(bus: &Bus, name: &MachineName, unit: &str, whom: &str, signal: i32) -> Result<(), OpError> {
    let doing = format!("stop machine '{name}'");
    match bus.manager().await?.kill_unit(unit, whom, signal).in_time().await {
        Ok(()) => Ok(()),
        Err(error) => match classify(&error, systemd1::SERVICE, &doing, unit) {
            // It went down by itself in between.
            BusError::NoSuchUnit(_) => Ok(()),
            BusError::Failed { name, .. } if name == "org.freedesktop.systemd1.NoSuchProcess" => Ok(()),
            error => Err(error.into()),
        },
    }
}

/// What a leader runs, as far as its signals are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// See systemd(1).
    Systemd,
    /// busybox's, or one that does as it does.
    Busybox,
    /// A program that is no init.
    None,
}

impl Init {
    /// systemd powers off at SIGRTMIN+4, busybox's init at SIGUSR2.
    fn poweroff_signal(self) -> Option<i32> {
        match self {
            Self::Systemd => Some(libc::SIGRTMIN() + 4),
            Self::Busybox => Some(libc::SIGUSR2),
            Self::None => None,
        }
    }

    /// systemd reboots at SIGINT as if Ctrl-Alt-Del were pressed; busybox's init reboots at SIGTERM.
    fn reboot_signal(self) -> Option<i32> {
        match self {
            Self::Systemd => Some(libc::SIGINT),
            Self::Busybox => Some(libc::SIGTERM),
            Self::None => None,
        }
    }
}

/// Which init it is, by its name: a signal means something else to each.
fn known_init(command: Option<&str>) -> Init {
    match command {
        Some("systemd") => Init::Systemd,
        Some("init" | "busybox" | "linuxrc") => Init::Busybox,
        _ => Init::None,
    }
}

/// The init of a container.
///
/// # Errors
/// [`OpError::NotContainer`]: the leader of a virtual machine is its emulator, and no signal reaches the guest.
fn init_of(verb: &'static str, name: &MachineName, registered: &Registered) -> Result<Init, OpError> {
    if registered.class != "container" {
        let name = name.to_string();
        return Err(OpError::NotContainer { verb, name });
    }
    let command = Leader::open(registered.leader).and_then(|leader| leader.command_name());
    Ok(known_init(command.as_deref()))
}

/// A program that is no init is asked to end.
fn poweroff_signal(name: &MachineName, registered: Option<&Registered>) -> Result<i32, OpError> {
    let init = registered.map_or(Ok(Init::Systemd), |registered| init_of("stop", name, registered))?;
    Ok(init.poweroff_signal().unwrap_or(libc::SIGTERM))
}

fn reboot_signal(name: &MachineName, registered: &Registered) -> Result<i32, OpError> {
    let init = init_of("reboot", name, registered)?;
    init.reboot_signal()
        .ok_or_else(|| OpError::NoInit { name: name.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_wait_is_for_ever() {
        let name = "web".parse().unwrap();
        let limit = Duration::from_millis(1);
        let error = within(limit, &name, "machine-web.scope", std::future::pending()).await;
        assert!(matches!(error, Err(OpError::TimedOut { after, .. }) if after == limit));
        assert!(
            within(limit, &name, "machine-web.scope", async { Ok(()) })
                .await
                .is_ok()
        );
    }
}
