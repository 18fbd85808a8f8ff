//! What is wrong with a machine's settings on this host.

use std::fs;
use std::path::Path;

use super::files::image;
use super::users::HostUsers;
use crate::machine::MachineName;
use crate::nspawn::check::{Finding, Host, Link, Reader, check};
use crate::nspawn::document::Document;
use crate::ops::Places;
use crate::sys::files::Root;
use crate::sys::netlink::interface_index;

/// Who reads the settings of which machine.
#[derive(Clone, Copy, Debug)]
pub struct Viewpoint<'a> {
    /// The version of systemd.
    pub systemd: u32,
    /// Whether the file may set everything.
    pub trusted: bool,
    /// The machine, if it is known: its image may have a host name of its own.
    pub machine: Option<&'a MachineName>,
    /// This host, if it is the one that the machine runs on, and is to be asked what it has.
    pub on_this_host: Option<&'a HostUsers>,
}

/// Everything that is to be told about a file.
#[must_use]
pub fn findings(document: &Document, view: Viewpoint<'_>, places: &Places) -> Vec<Finding> {
    let image_hostname = view
        .machine
        .filter(|_| view.on_this_host.is_some())
        .and_then(|name| image(name, places))
        .and_then(|image| hostname_in(&image));
    let taken_users = || {
        let users = view.on_this_host;
        users.map_or_else(Vec::new, |users| users.besides(view.machine, view.systemd, places))
    };
    let host = Host {
        has_path: &|path| Path::new(path).symlink_metadata().is_ok(),
        link: &link,
        taken_users: &taken_users,
        image_hostname: image_hostname.as_deref(),
    };
    let reader = Reader {
        systemd: view.systemd,
        trusted: view.trusted,
        host: view.on_this_host.map(|_| host),
    };
    check(document, &reader)
}

/// A network interface of the host. Sysfs may be that of another network namespace, as in a container: where it is, nothing
/// speaks against a bridge.
fn link(name: &str) -> Option<Link> {
    let index = interface_index(name)?;
    let entry = Path::new("/sys/class/net").join(name);
    let shown = fs::read_to_string(entry.join("ifindex")).ok();
    let is_the_same = shown.is_some_and(|shown| shown.trim() == index.to_string());
    Some(if is_the_same && !entry.join("bridge").exists() {
        Link::Other
    } else {
        Link::Bridge
    })
}

/// What /etc/hostname of an image says, see hostname(5).
fn hostname_in(image: &Path) -> Option<String> {
    let text = Root::open(image).ok()?.read_to_string("etc/hostname", 4096).ok()?;
    let mut lines = text.lines().map(str::trim);
    lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
}
