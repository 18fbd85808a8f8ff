//! What becomes of a machine that nobody tells: its addresses, by rtnetlink(7) in its network namespace, and whether it is
//! frozen, by its control groups: systemd 252 says nothing of that, and no systemd of what is frozen inside its unit.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::guest::{AddressReader, Leader};

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`
const GROUPS: u32 = 0x10 | 0x100;
/// A machine that changes something at full speed is looked at in good time.
const PAUSE: Duration = Duration::from_millis(50);
/// How many addresses of a machine are told.
const ADDRESSES_MAX: usize = 256;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has this address.
    Has(IpAddr),
    /// It has this address no more.
    Lost(IpAddr),
    /// Whether it is frozen.
    Frozen(bool),
}

/// What is known of a machine.
#[derive(Debug, Default)]
struct Known {
    frozen: bool,
    addresses: BTreeSet<IpAddr>,
}

/// Tells what changes of a machine until it ends, or `tell` is false: whether it is frozen, other than `frozen`, and for root
/// its addresses; with `all` also those that it has already. Blocks, and enters the machine's network namespace with the
/// calling thread, which is for nothing else.
pub fn watch(leader: &Leader, frozen: bool, all: bool, mut tell: impl FnMut(Change) -> bool) -> std::io::Result<()> {
    let groups = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let reader = AddressReader::new();
    let read = || -> Option<BTreeSet<IpAddr>> {
        let addresses = reader.as_ref()?.read(leader)?;
        Some(addresses.into_iter().take(ADDRESSES_MAX).collect())
    };
    // The thread is in there afterwards, and so is the socket that it makes.
    let first = read();
    let socket = first.as_ref().and_then(|_| address_socket());
    let mut known = Known {
        frozen,
        addresses: first.filter(|_| !all).unwrap_or_default(),
    };
    loop {
        watch_groups(&groups, leader);
        let now = Known {
            frozen: leader.is_frozen(),
            addresses: socket.as_ref().and_then(|_| read()).unwrap_or_default(),
        };
        if !leader.is_alive() {
            return Ok(());
        }
        let went = known
            .addresses
            .difference(&now.addresses)
            .map(|address| Change::Lost(*address));
        let came = now
            .addresses
            .difference(&known.addresses)
            .map(|address| Change::Has(*address));
        let freezer = (now.frozen != known.frozen).then_some(Change::Frozen(now.frozen));
        if !freezer.into_iter().chain(went).chain(came).all(&mut tell) {
            return Ok(());
        }
        known = now;
        let pidfd = leader.pidfd();
        let mut fds = vec![PollFd::new(&groups, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(socket.as_ref().map(|socket| PollFd::new(socket, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            other => drop(other?),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
        // What is said does not matter, nor that some of it was lost: all is read anew.
        let mut buffer = [0; 8192];
        while matches!(rustix::io::read(&groups, &mut buffer), Ok(1..)) {}
        if let Some(socket) = &socket {
            while !matches!(recv(socket, &mut buffer, RecvFlags::empty()), Err(Errno::AGAIN)) {}
        }
    }
}

/// A socket of this thread's network namespace that hears of addresses.
fn address_socket() -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).ok()?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS)).ok()?;
    Some(socket)
}

/// Watches the control group of a leader, and those above: the kernel says when they are frozen, see cgroups(7). A second time
/// changes nothing. When a machine has just been registered, systemd-nspawn is still to move its leader to `payload`.
fn watch_groups(groups: &OwnedFd, leader: &Leader) {
    let Some(group) = leader.control_group() else { return };
    // Beside v1 there is but one of the two.
    for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new) {
        let comes = WatchFlags::CREATE | WatchFlags::ONLYDIR;
        let _ = inotify::add_watch(groups, mount.join(&group), comes);
        let places = Path::new(&group)
            .ancestors()
            .filter(|place| !place.as_os_str().is_empty());
        for place in places {
            for events in ["cgroup.events", "payload/cgroup.events"] {
                let _ = inotify::add_watch(groups, mount.join(place).join(events), WatchFlags::MODIFY);
            }
        }
    }
}
