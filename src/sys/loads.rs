//! What all running machines use, again and again, for `top`: from their control groups, and from their links.
//!
//! machined is asked once for each machine, when it comes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::time::{Instant, SystemTime};

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::bus::{Bus, BusError};
use super::gauges::{Gauges, Reading};
use super::guest::Leader;
use super::netlink::LinkReader;
use crate::machine::load::{Load, rate};

/// The most that is read of a machine's list of links: it can make any number of them.
const LINKS_MAX: u64 = 64 * 1024;

/// Running machines, and what each used the last time.
#[derive(Debug)]
pub struct Loads {
    bus: Bus,
    links: Option<LinkReader>,
    machines: BTreeMap<String, Meter>,
}

/// One machine.
#[derive(Debug)]
struct Meter {
    leader: u32,
    gauges: Option<Gauges>,
    network: Network,
    /// Counts that grow, and when they were read.
    before: Option<(Instant, Counts)>,
}

/// Where a machine's traffic is counted.
#[derive(Debug)]
enum Network {
    /// At the host's ends of its links.
    Host(Vec<u32>),
    /// Inside: it has a namespace of its own, and systemd-nspawn knows of no link.
    Inside(Leader),
    /// It is the host's, or may not be looked at.
    Unknown,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    reading: Reading,
    received: Option<u64>,
    sent: Option<u64>,
}

impl Loads {
    /// No machines yet. `bus` is for questions: what is heard of machines comes by another connection.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        allow_many_files();
        Self {
            bus,
            links: LinkReader::new().ok(),
            machines: BTreeMap::new(),
        }
    }

    /// Asks by another connection from now on.
    pub fn ask_by(&mut self, bus: Bus) {
        self.bus = bus;
    }

    /// The names of the machines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.machines.keys().map(String::as_str)
    }

    /// Looks at which machines there are, of those that are `wanted`.
    pub async fn look(&mut self, wanted: impl Fn(&str) -> bool) -> Result<(), BusError> {
        let rows = self.bus.machines().await?;
        let names: Vec<String> = rows.into_iter().map(|row| row.0).filter(|name| wanted(name)).collect();
        self.machines.retain(|name, _| names.contains(name));
        let meters = join_all(names.iter().map(|name| meter(&self.bus, name))).await;
        for (name, meter) in names.into_iter().zip(meters) {
            self.put(name, meter);
        }
        Ok(())
    }

    /// A machine has come.
    pub async fn come(&mut self, name: String) {
        let meter = meter(&self.bus, &name).await;
        self.put(name, meter);
    }

    /// A machine has gone.
    pub fn leave(&mut self, name: &str) {
        self.machines.remove(name);
    }

    fn put(&mut self, name: String, meter: Option<Meter>) {
        let Some(meter) = meter else {
            self.machines.remove(&name);
            return;
        };
        // One that was known keeps its counts.
        if self
            .machines
            .get(&name)
            .is_none_or(|known| known.leader != meter.leader)
        {
            self.machines.insert(name, meter);
        }
    }

    /// Reads what each machine uses; each second's since the last time. Sorted by name.
    pub async fn read(&mut self) -> Vec<Load> {
        let of_host = |meter: &Meter| matches!(meter.network, Network::Host(_));
        let links = match &self.links {
            Some(links) if self.machines.values().any(of_host) => links.counts().await.unwrap_or_default(),
            _ => HashMap::new(),
        };
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let time = u64::try_from(time.unwrap_or_default().as_micros()).unwrap_or(0);
        let machines = self.machines.iter_mut();
        machines
            .map(|(name, meter)| Load {
                time,
                name: name.clone(),
                ..meter.read(&links)
            })
            .collect()
    }
}

/// What is known of a machine; `None` if it is gone.
async fn meter(bus: &Bus, name: &str) -> Option<Meter> {
    let registered = bus.registered_properties(name).await.ok()?;
    let unit = registered.string("Unit");
    let kind = if unit.ends_with(".scope") { "Scope" } else { "Service" };
    let group = bus.unit_properties(&unit, kind, &["ControlGroup"]).await.ok();
    let leader = registered
        .number("Leader")
        .and_then(|pid| u32::try_from(pid).ok())
        .unwrap_or(0);
    let links: Vec<u32> = registered
        .integers("NetworkInterfaces")
        .into_iter()
        .filter_map(|index| u32::try_from(index).ok())
        .collect();
    let network = match Leader::open(leader) {
        _ if !links.is_empty() => Network::Host(links),
        Some(leader) if leader.shares("net") == Some(false) => Network::Inside(leader),
        _ => Network::Unknown,
    };
    Some(Meter {
        leader,
        gauges: group.and_then(|group| Gauges::of(&group.string("ControlGroup"))),
        network,
        before: None,
    })
}

impl Meter {
    fn read(&mut self, links: &HashMap<u32, (u64, u64)>) -> Load {
        let now = Instant::now();
        let reading = self.gauges.as_mut().map(Gauges::read).unwrap_or_default();
        let (received, sent) = self.network.counts(links).unzip();
        let counts = Counts {
            reading,
            received,
            sent,
        };
        let (began, before) = self.before.replace((now, counts)).unwrap_or((now, Counts::default()));
        let micros = now.duration_since(began).as_micros();
        Load {
            cpu: rate(before.reading.cpu, reading.cpu, micros),
            cpu_limit: reading.cpu_limit,
            cpu_total: reading.cpu,
            memory: reading.memory,
            memory_limit: reading.memory_limit,
            tasks: reading.tasks,
            tasks_limit: reading.tasks_limit,
            io_read: rate(before.reading.read, reading.read, micros),
            io_write: rate(before.reading.written, reading.written, micros),
            net_rx: rate(before.received, received, micros),
            net_tx: rate(before.sent, sent, micros),
            ..Load::default()
        }
    }
}

impl Network {
    /// Bytes that the machine received and sent until now.
    fn counts(&self, links: &HashMap<u32, (u64, u64)>) -> Option<(u64, u64)> {
        match self {
            // What the host's end sends, the machine receives.
            Self::Host(indices) => {
                let found = indices.iter().filter_map(|index| links.get(index));
                found.copied().map(|(received, sent)| (sent, received)).reduce(add)
            }
            // Not kept open: that would keep the namespace, and its links, when the machine has ended.
            Self::Inside(leader) => {
                let mut text = String::new();
                let file = File::open(format!("/proc/{}/net/dev", leader.pid())).ok()?;
                file.take(LINKS_MAX).read_to_string(&mut text).ok()?;
                leader.is_alive().then(|| traffic(&text))
            }
            Self::Unknown => None,
        }
    }
}

fn add(one: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    (one.0.saturating_add(other.0), one.1.saturating_add(other.1))
}

/// Of all links but loopback in `/proc/PID/net/dev`, see proc_pid_net(5).
fn traffic(text: &str) -> (u64, u64) {
    let counts = text.lines().filter_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().map_while(|word| word.parse().ok()).collect();
        (name.trim() != "lo").then_some((*counts.first()?, *counts.get(8)?))
    });
    counts.fold((0, 0), add)
}

/// Seven files of each machine are open: more than a shell's limit allows for a hundred of them.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // Without it, what cannot be opened is unknown.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_all_links_but_loopback() {
        let text = "Inter-|   Receive                |  Transmit\n face |bytes    packets errs |bytes\n    \
                    lo: 99 1 0 0 0 0 0 0 99 1 0 0 0 0 0 0\n host0: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n  \
                    mv-1:1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n bad: 1\n";
        assert_eq!(traffic(text), (11, 22));
        assert_eq!(traffic(""), (0, 0));
    }

    #[test]
    fn the_hosts_end_sends_what_the_machine_receives() {
        let links = HashMap::from([(3, (1, 2)), (4, (10, 20)), (5, (100, 200))]);
        let network = |indices: &[u32]| Network::Host(indices.to_vec()).counts(&links);
        assert_eq!(network(&[3, 4]), Some((22, 11)));
        assert_eq!(network(&[9]), None);
    }
}
