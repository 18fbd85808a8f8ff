//! create from a web server: what is checked, what is kept, and what a bad server leaves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::Signal;

use crate::sources::{ANOTHER, Work, is_nowhere, sum_of};
use crate::support::{Guest, There, agree, machinist, make_busybox_image, sh, shared, wait_until};
use crate::web::{Page, Web};

/// A web server with an archive of a root filesystem at `/x/web.tar.zst`, and the file that it is of.
pub(crate) fn served() -> (Work, Web, String) {
    let (work, web) = (Work::new("web"), Web::new());
    make_busybox_image(&work.0.join("tree"));
    sh(
        "cd \"$1\"; tar -C tree -cf - . | zstd -q >web.tar.zst",
        [work.0.as_os_str()],
    )
    .ok();
    let file = work.file("web.tar.zst");
    web.put("/x/web.tar.zst", archive(&file));
    (work, web, file)
}

pub(crate) fn archive(file: &str) -> Page {
    Page {
        etag: Some("\"one\""),
        ..Page::new(fs::read(file).unwrap())
    }
}

#[test]
fn a_download_is_checked_and_gone_on_with() {
    let _host = shared();
    let (_work, web, file) = served();
    let (url, sum) = (web.url("/x/web.tar.zst"), sum_of(&file));
    let guest = Guest::new("web");
    let plain = machinist(["create", &guest.name, &url, "--no-cache", "--start"]).ok();
    plain
        .stderr_has(&format!("warning: {}: nothing vouches for '{url}'", guest.name))
        .stderr_has("downloading web.tar.zst");
    agree(&guest.name, There::Running);
    // In pieces, with a list beside it.
    let length = fs::metadata(&file).unwrap().len();
    let cut = Page {
        cut: (usize::try_from(length).unwrap() / 2, 1),
        ..archive(&file)
    };
    web.put("/x/web.tar.zst", cut);
    web.put(
        "/x/SHA256SUMS",
        Page::new(format!("{ANOTHER}  other.tar\n{sum} *web.tar.zst\n")),
    );
    web.asked();
    let (second, list) = (Guest::new("web"), web.url("/x/SHA256SUMS"));
    machinist(["create", &second.name, &url])
        .ok()
        .stderr_has(&format!(
            "anybody on the way may have changed both '{url}' and '{list}'"
        ))
        .stderr_has("downloading again: the connection ended in the middle")
        .stderr_has(&format!("its SHA-256 sum is the one of '{list}'"));
    agree(&second.name, There::Stopped);
    let asked = web.asked();
    let pieces: Vec<&String> = asked.iter().filter(|path| path.starts_with("/x/web.tar.zst")).collect();
    assert!(pieces.iter().any(|path| path.contains(" bytes=")), "{asked:?}");
    let mode = fs::metadata("/var/cache/machinist/downloads").unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o700, "downloads are open: {mode:o}");
    // What is kept; and by the sum that the caller knows, of a server that sends it elsewhere.
    let third = Guest::new("web");
    machinist(["create", &third.name, &url]).ok();
    agree(&third.name, There::Stopped);
    web.put(
        "/moved",
        Page {
            location: Some("/x/web.tar.zst".to_owned()),
            ..Page::default()
        },
    );
    let moved = web.url("/moved");
    machinist(["run", &moved, "--", "sh", "-c", "echo it runs"])
        .ok()
        .stdout_is("it runs\n");
    let fourth = Guest::new("web");
    let sha256 = format!("--sha256={sum}");
    machinist(["create", &fourth.name, &moved, &sha256, "--refresh"])
        .ok()
        .stderr_has("its SHA-256 sum is the one of --sha256");
    // It is swept as bootstraps are.
    let clean = machinist(["clean", "--all", "--dry-run"]).ok().stdout;
    assert!(clean.contains("download http://127.0.0.1:"), "{clean}");
}

#[test]
fn a_download_that_is_not_what_it_should_be_leaves_nothing() {
    let _host = shared();
    let (_work, web, file) = served();
    let (url, sum) = (web.url("/x/web.tar.zst"), sum_of(&file));
    let guest = Guest::new("bad");
    let name = guest.name.as_str();
    let refused = |words: &[&str], status: i32, message: &str| {
        let output = machinist([&["create", name] as &[&str], words].concat()).status(status);
        assert!(output.stderr.contains(message), "no {message:?}\n{output:?}");
        is_nowhere(&guest);
    };
    refused(
        &[&url, "--verify=checksum"],
        1,
        "no list of checksums vouches for 'http://",
    );
    refused(
        &[&url, "--sha256", ANOTHER],
        1,
        &format!("its SHA-256 sum is {sum}, and --sha256 says {ANOTHER}"),
    );
    web.put("/x/web.tar.zst.sha256", Page::new(format!("{ANOTHER}\n")));
    refused(&[&url], 1, &format!("web.tar.zst.sha256' says {ANOTHER}"));
    refused(
        &[&url, "--verify=no", "--strip=3"],
        1,
        "has nothing below the first 3 directories",
    );
    // No archive.
    let page = Page {
        etag: Some("\"one\""),
        ..Page::new("<!doctype html><p>Please log in</p>")
    };
    web.put("/page.tar", page);
    web.asked();
    for _ in 0..2 {
        refused(
            &[&web.url("/page.tar")],
            1,
            "'page.tar' is not a tar archive: it looks like a web page",
        );
        // It was not kept: all of it is asked for again.
        let asked = web.asked();
        assert!(asked.contains(&"/page.tar".to_owned()), "{asked:?}");
    }
    refused(&[&web.url("/none.tar")], 1, "there is no such file (HTTP status 404)");
    refused(
        &["http://127.0.0.1:9/a.tar"],
        1,
        "cannot download 'http://127.0.0.1:9/a.tar",
    );
    refused(&["https:///a.tar"], 2, "is no address of a download: it names no host");
    refused(
        &[&url, "--arch=arm64"],
        2,
        "--arch is for debian:SUITE, ubuntu:SUITE, images:DISTRO/RELEASE and images of containers, not for",
    );
    refused(&["template:busybox", "--verify=no"], 2, "--verify is for downloads");
    refused(&[&url, "--verify=no", "--sha256", ANOTHER], 2, "cannot be used with");
    let plan = machinist(["create", name, &url, "--verify=checksum", "--dry-run"]);
    plan.status(1).stderr_has("--sha256 HEX");
    let url_of = "https://example.org/a.tar";
    let plan = machinist(["create", name, url_of, "--verify=checksum", "--dry-run"]).ok();
    plan.stdout_has(&format!("download '{url_of}', or use what is kept"))
        .stdout_has("check its sum, which has to stand in");
    is_nowhere(&guest);
    // Interrupted, while it goes on and on.
    let cut = Page {
        cut: (1000, 99),
        ..archive(&file)
    };
    web.put("/x/web.tar.zst", cut);
    web.asked();
    let running = machinist(["create", name, &url, "--verify=no", "--no-cache"]).spawn();
    wait_until("it is asked for", || !web.asked().is_empty());
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().status, 130);
    is_nowhere(&guest);
}

/// An authority of its own, a server that it vouches for, and what that answers: whole answers in files.
const HTTPS: &str = r#"cd "$1"
    printf 'HTTP/1.1 200 x\r\nContent-Length: %s\r\n\r\n' "$(stat -c %s web.tar.zst)" | cat - web.tar.zst >whole.tar.zst
    printf 'HTTP/1.1 302 x\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n' "$2" >moved.tar.zst
    new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2'
    $new -x509 -keyout ca.key -out ca.pem -subj /CN=authority 2>/dev/null
    $new -keyout key.pem -out request.pem -subj /CN=server 2>/dev/null
    echo 'subjectAltName=IP:127.0.0.1' >names
    openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out cert.pem 2>/dev/null
    exec openssl s_server -accept 127.0.0.1:0 -key key.pem -cert cert.pem -HTTP >log 2>&1"#;

#[test]
fn https_is_not_left_for_http() {
    let _host = shared();
    let (work, web, _file) = served();
    let server = sh(
        HTTPS,
        [work.0.to_string_lossy().into_owned(), web.url("/x/web.tar.zst")],
    )
    .spawn();
    let log = || fs::read_to_string(work.0.join("log")).unwrap_or_default();
    let address = || {
        log()
            .lines()
            .find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned))
    };
    wait_until("the server listens", || address().is_some());
    let url = format!("https://{}", address().expect("an address"));
    let guest = Guest::new("tls");
    let create = |path: &str| machinist(["create", &guest.name, &format!("{url}/{path}"), "--no-cache"]);
    create("whole.tar.zst").status(1).stderr_has("ca-certificates");
    is_nowhere(&guest);
    let trusted = |path: &str| create(path).env("SSL_CERT_FILE", work.0.join("ca.pem"));
    trusted("moved.tar.zst").status(1).stderr_has(&format!(
        "it redirects to '{}', which is not https",
        web.url("/x/web.tar.zst")
    ));
    is_nowhere(&guest);
    // It answers whatever it is asked for: that is no checksum.
    let whole = format!("{url}/whole.tar.zst");
    machinist(["create", &guest.name, &whole, "--verify=checksum", "--no-cache"])
        .env("SSL_CERT_FILE", work.0.join("ca.pem"))
        .status(1)
        .stderr_has("it has neither .sha256 nor SHA256SUMS beside it, nor those of SHA-512");
    is_nowhere(&guest);
    trusted("whole.tar.zst")
        .ok()
        .stderr_has("whole.tar.zst.sha256' has no sum of it")
        .stderr_has("nothing vouches for it but its server");
    agree(&guest.name, There::Stopped);
    assert!(web.asked().is_empty());
    server.signal(Signal::SIGTERM);
    server.wait();
}
