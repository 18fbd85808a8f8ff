//! Links and addresses, by rtnetlink(7).

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, MulticastGroup};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Sender;

/// Why the kernel's tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket, or no runtime to use it with.
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused the question.
    #[error("cannot read addresses or links")]
    Read(#[source] rtnetlink::Error),
}

/// A runtime for [`addresses`].
pub fn runtime() -> Result<Runtime, NetlinkError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NetlinkError::Socket)
}

/// The addresses of the calling thread's network namespace, as machined lists them: without loopback's and
/// deprecated ones, widest scope first, IPv4 before IPv6.
///
/// `runtime` is the thread's own: one of them does for any number of namespaces, one after the other.
pub fn addresses(runtime: &Runtime) -> Result<Vec<IpAddr>, NetlinkError> {
    runtime.block_on(async {
        // The socket belongs to the namespace in which it is made; the connection ends with its only handle.
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        list(&handle).await
    })
}

/// The same, and again whenever one of them has changed, until nobody takes them any more.
pub fn watch_addresses(runtime: &Runtime, sink: &Sender<Vec<IpAddr>>) -> Result<(), NetlinkError> {
    runtime.block_on(async {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, mut changes) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        while sink.send(list(&handle).await?).await.is_ok() {
            tokio::select! {
                change = changes.next() => if change.is_none() { break },
                () = sink.closed() => break,
            }
        }
        Ok(())
    })
}

async fn list(handle: &Handle) -> Result<Vec<IpAddr>, NetlinkError> {
    let mut found: Vec<(u8, bool, IpAddr)> = Vec::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await.map_err(NetlinkError::Read)? {
        let scope = message.header.scope;
        if matches!(scope, AddressScope::Host | AddressScope::Nowhere) {
            continue;
        }
        let mut local = None;
        let mut address = None;
        let mut deprecated = false;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(flags) => deprecated = flags.contains(AddressFlags::Deprecated),
                _ => {}
            }
        }
        // On a point-to-point link ADDRESS is the peer; LOCAL is ours.
        if let (Some(ip), false) = (local.or(address), deprecated) {
            found.push((u8::from(scope), ip.is_ipv6(), ip));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(.., ip)| ip).collect())
}

/// Reads what went through the links of this network namespace.
#[derive(Debug)]
pub struct LinkReader(Handle);

impl LinkReader {
    /// To be called in a runtime, which serves it.
    pub fn new() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Bytes received and sent by each link until now, by its index.
    pub async fn counts(&self) -> Result<HashMap<u32, (u64, u64)>, NetlinkError> {
        let mut found = HashMap::new();
        let mut messages = self.0.link().get().execute();
        while let Some(message) = messages.try_next().await.map_err(NetlinkError::Read)? {
            for attribute in &message.attributes {
                if let LinkAttribute::Stats64(counts) = attribute {
                    found.insert(message.header.index, (counts.rx_bytes, counts.tx_bytes));
                }
            }
        }
        Ok(found)
    }
}

/// The index of a network interface of this network namespace, if there is one of that name. Does not wait.
#[must_use]
pub fn interface_index(name: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    name_to_index(&socket, name).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_is_left_out() {
        let addresses = super::addresses(&super::runtime().unwrap()).unwrap();
        assert!(addresses.iter().all(|ip| !ip.is_loopback()), "{addresses:?}");
    }
}
