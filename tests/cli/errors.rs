//! Errors without a host: usage (2), and no bus (5), as text and as JSON.

use insta::assert_snapshot;

use super::session;

fn sessions(calls: &[&[&str]]) -> String {
    calls.iter().map(|words| session(words)).collect::<Vec<_>>().join("\n")
}

#[test]
fn usage() {
    assert_snapshot!(sessions(&[
        &[],
        &["strat", "web"],
        &["start"],
        &["start", "web", "--timeout", "soon"],
        &["create", "web", "nonsense", "--dry-run"],
        &["create", "a..b", "template:busybox", "--dry-run"],
        &["create", "web.raw", "template:busybox", "--dry-run"],
        &["create", "web", "debian:trixie", "--network", "vlan=3"],
        &["create", "web", "debian:trixie", "--network", "bridge=x\n[Exec]"],
        &[
            "create",
            "web",
            "template:busybox",
            "--arch",
            "arm64",
            "--include",
            "foo",
            "--dry-run"
        ],
        &["create", "web", "rootfs.tar", "--refresh", "--dry-run"],
        &["create", "web", "template:busybox", "--subtree", "rootfs", "--dry-run"],
        &["create", "web", "-", "--subtree", "../rootfs", "--dry-run"],
        &["create", "web", "-", "--sha256", "abc", "--dry-run"],
        &["create", "web", "-", "--root-password-file", "-", "--dry-run"],
        &["create", "web", "debian:trixie", "--variant", "foo", "--dry-run"],
        &["create", "web", "debian:trixie", "--proxy", "foo", "--dry-run"],
        &["create", "web", "debian:trixie", "--mirror", "ftp://foo", "--dry-run"],
        &["create", "web", "debian:trixie", "--set", "Timezone=copy"],
        &["create", "web", "debian:trixie", "--no-cache", "--refresh"],
        &["list", "--columns", "colour"],
        &["man", "colour"],
    ]));
}

#[test]
fn usage_as_json() {
    assert_snapshot!(sessions(&[
        &["--json", "strat", "web"],
        &["start", "--json"],
        &["create", "web", "nonsense", "--dry-run", "--json"],
        &["list", "--columns", "colour", "--json"],
    ]));
}

#[test]
fn no_bus() {
    assert_snapshot!(sessions(&[
        &["list"],
        &["images"],
        &["show", "web"],
        &["start", "web"],
        &["stop", "web"],
        &["enable", "web"],
        &["list", "--json"],
        &["list", "--quiet"],
    ]));
}
