//! The network of a running machine, from inside its network namespace: it is the same however the machine is connected, and
//! needs no route to it.
//!
//! Only a thread of ours goes there, and nothing of the machine is read or run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::sync::{mpsc, oneshot};

use super::guest::Leader;
use super::netlink;

/// How long one attempt to connect may take: a firewall inside may swallow it.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How many of a machine's addresses are tried.
const ADDRESSES_MAX: usize = 16;
/// Bytes of stack of a thread.
const STACK: usize = 256 * 1024;

/// Whether others can reach a machine at the address: those of a link are there before anything is configured.
#[must_use]
pub fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

/// A machine's addresses, at once and whenever they have changed; `None` if its namespace may not be entered.
#[must_use]
pub fn watch_addresses(leader: &Leader) -> Option<mpsc::Receiver<Vec<IpAddr>>> {
    let (sink, addresses) = mpsc::channel(1);
    inside(leader, move || {
        let Ok(runtime) = netlink::runtime() else { return };
        // The receiver hears of the end.
        let _ = netlink::watch_addresses(&runtime, &sink);
    })?;
    Some(addresses)
}

/// Whether something in the machine accepts TCP connections at the port: on the loopback or at any address of it.
pub async fn accepts(leader: &Leader, port: u16) -> bool {
    let (sink, answer) = oneshot::channel();
    let started = inside(leader, move || {
        let runtime = netlink::runtime().ok();
        let own = runtime.and_then(|runtime| netlink::addresses(&runtime).ok());
        let own = own.into_iter().flatten().filter(is_reachable).take(ADDRESSES_MAX);
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let connects = |address| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_LIMIT).is_ok();
        let _ = sink.send(loopback.into_iter().chain(own).any(connects));
    });
    started.is_some() && answer.await.unwrap_or(false)
}

/// Runs `work` on a thread of its own in the machine's network namespace.
fn inside(leader: &Leader, work: impl FnOnce() + Send + 'static) -> Option<()> {
    let namespace = leader.namespace("net")?;
    let thread = std::thread::Builder::new().stack_size(STACK);
    let spawned = thread.spawn(move || {
        if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
            work();
        }
    });
    spawned.is_ok().then_some(())
}

#[cfg(test)]
mod tests {
    use super::is_reachable;

    #[test]
    fn addresses_of_a_link_are_none() {
        let reachable = |text: &str| is_reachable(&text.parse().unwrap());
        for address in ["10.0.0.1", "192.168.1.1", "2001:db8::1", "fd00::1"] {
            assert!(reachable(address), "{address}");
        }
        for address in ["127.0.0.1", "169.254.3.4", "::1", "fe80::1"] {
            assert!(!reachable(address), "{address}");
        }
    }
}
