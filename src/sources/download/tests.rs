//! Downloads from a server that breaks off, changes its mind, and lies.

use std::io::Read as _;

use sha2::Digest as _;
use tempfile::TempDir;

use super::*;
use crate::sources::digest::Digest;
use crate::sources::web::{Page, Web};

mod signed;

/// A cache of its own.
struct Scene {
    _dir: TempDir,
    places: Places,
    web: Web,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            places: Places {
                cache: dir.path().join("cache"),
                keys: dir.path().join("keys"),
                ..Places::default()
            },
            _dir: dir,
            web: Web::new(),
        }
    }

    fn fetch_as(&self, path: &str, options: &DownloadOptions, sum: Option<Sum>) -> Result<Vec<u8>, String> {
        let url: Url = self.web.url(path).parse().unwrap();
        let (mut file, sum) =
            fetch(&url, options, sum, &self.places, &(), &Cancel::default()).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(sum, of(&bytes));
        Ok(bytes)
    }

    fn refused(&self, path: &str) -> String {
        self.fetch(path).map(|bytes| bytes.len()).unwrap_err()
    }

    fn fetch(&self, path: &str) -> Result<Vec<u8>, String> {
        self.fetch_as(path, &unchecked(CacheUse::Use), None)
    }

    /// What is kept, but for locks.
    fn kept(&self) -> Vec<String> {
        let dir = self.places.cache.join("downloads");
        let names = std::fs::read_dir(dir)
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        let mut kept: Vec<String> = names
            .into_iter()
            .flatten()
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        kept.sort();
        kept
    }
}

fn of(bytes: &[u8]) -> Sum {
    let mut sum = sha2::Sha256::new();
    sum.update(bytes);
    Sum::from_digest(sum)
}

fn unchecked(cache: CacheUse) -> DownloadOptions {
    DownloadOptions {
        cache,
        verify: Verify::No,
        ..DownloadOptions::default()
    }
}

fn large(seed: u8) -> Vec<u8> {
    (0_u32..3_000_000)
        .map(|at| at.to_le_bytes()[0] ^ seed ^ at.to_le_bytes()[1])
        .collect()
}

#[test]
fn what_was_interrupted_is_gone_on_with() {
    let scene = Scene::new();
    let body = large(0);
    let page = Page {
        etag: Some("\"1\""),
        cut: (1_000_000, 1),
        ..Page::new(body.clone())
    };
    scene.web.put("/a.tar", page.clone());
    assert!(scene.fetch("/a.tar").unwrap() == body);
    let asked = scene.web.asked();
    assert_eq!(asked[0], "/a.tar");
    assert!(asked.len() == 2 && asked[1].starts_with("/a.tar bytes="), "{asked:?}");
    // What is kept is asked for again, and not sent again.
    assert!(scene.fetch("/a.tar").unwrap() == body);
    assert_eq!(scene.web.asked(), ["/a.tar \"1\""]);
    assert_eq!(scene.kept().len(), 2);
    // By another call, with another file in the end.
    let cut = Page {
        cut: (100_000, 99),
        ..page.clone()
    };
    scene.web.put("/b.tar", cut.clone());
    assert!(
        scene
            .fetch("/b.tar")
            .unwrap_err()
            .contains("the connection ended in the middle")
    );
    assert_eq!(scene.kept().len(), 4, "{:?}", scene.kept());
    scene.web.asked();
    scene.web.put(
        "/b.tar",
        Page {
            cut: (0, 0),
            ..page.clone()
        },
    );
    assert!(scene.fetch("/b.tar").unwrap() == body);
    assert!(scene.web.asked()[0].starts_with("/b.tar bytes="));
    scene.web.put("/c.tar", cut.clone());
    scene.refused("/c.tar");
    scene.web.put(
        "/c.tar",
        Page {
            etag: Some("\"2\""),
            ..Page::new(large(7))
        },
    );
    assert!(scene.fetch("/c.tar").unwrap() == large(7));
    // So do servers that give a part of whatever they have by now.
    scene.web.put("/e.tar", cut);
    scene.refused("/e.tar");
    scene.web.put(
        "/e.tar",
        Page {
            etag: Some("\"2\""),
            any_range: true,
            ..Page::new(large(7))
        },
    );
    scene.web.asked();
    assert!(scene.fetch("/e.tar").unwrap() == large(7));
    let asked = scene.web.asked();
    assert!(asked.len() == 2 && asked[0].starts_with("/e.tar bytes="), "{asked:?}");
    // It cannot be gone on with: nothing is kept of it.
    let (before, page) = (
        scene.kept(),
        Page {
            cut: (100_000, 99),
            ..Page::new(body.clone())
        },
    );
    scene.web.put("/d.tar", page.clone());
    scene.refused("/d.tar");
    assert_eq!(scene.kept(), before);
    scene.web.put(
        "/d.tar",
        Page {
            cut: (1_000_000, 2),
            ..page
        },
    );
    assert!(scene.fetch("/d.tar").unwrap() == body);
}

#[test]
fn what_is_kept_is_what_the_server_has() {
    let scene = Scene::new();
    let put = |etag, body: &str| {
        scene.web.put(
            "/a.tar",
            Page {
                etag: Some(etag),
                ..Page::new(body)
            },
        );
    };
    put("\"1\"", "one");
    assert_eq!(scene.fetch("/a.tar").unwrap(), b"one");
    put("\"2\"", "two");
    assert_eq!(scene.fetch("/a.tar").unwrap(), b"two");
    scene.web.asked();
    // Its sum is known: nobody is asked.
    let known = scene.fetch_as("/a.tar", &DownloadOptions::default(), Some(of(b"two")));
    assert_eq!((known.unwrap(), scene.web.asked().len()), (b"two".to_vec(), 0));
    for (cache, kept) in [(CacheUse::Refresh, 2), (CacheUse::Skip, 2)] {
        assert_eq!(scene.fetch_as("/a.tar", &unchecked(cache), None).unwrap(), b"two");
        assert_eq!(
            (scene.web.asked(), scene.kept().len()),
            (vec!["/a.tar".to_owned()], kept)
        );
    }
    let entries = entries(&scene.places).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].what, format!("download {}", scene.web.url("/a.tar")));
    assert!(
        clear(&scene.places, std::time::Duration::from_secs(60), &Cancel::default())
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        clear(&scene.places, std::time::Duration::ZERO, &Cancel::default()).unwrap(),
        [entries[0].path.clone()]
    );
    assert!(scene.kept().is_empty());
}

#[test]
fn another_file_than_it_should_be_leaves_nothing() {
    let scene = Scene::new();
    let body = "what it is".repeat(1000);
    scene.web.put(
        "/x/a.tar",
        Page {
            etag: Some("\"1\""),
            ..Page::new(body.as_str())
        },
    );
    let other = of(b"other");
    let fetch = |verify| {
        let options = DownloadOptions {
            verify,
            ..DownloadOptions::default()
        };
        scene.fetch_as("/x/a.tar", &options, None)
    };
    let refused = |result: Result<Vec<u8>, String>, by: &str| {
        let said = result.unwrap_err();
        assert!(
            said.contains(&format!("is {}, and {by} says {other}", of(body.as_bytes()))),
            "{said}"
        );
        assert!(scene.kept().is_empty(), "{:?}", scene.kept());
    };
    for cache in [CacheUse::Use, CacheUse::Skip] {
        refused(scene.fetch_as("/x/a.tar", &unchecked(cache), Some(other)), "--sha256");
    }
    // Whoever is on the way writes the list, too.
    let url: Url = scene.web.url("/x/a.tar").parse().unwrap();
    let options = DownloadOptions {
        verify: Verify::Checksum,
        ..DownloadOptions::default()
    };
    let unsafe_list = "no list of checksums vouches for";
    assert!(fetch(Verify::Checksum).unwrap_err().starts_with(unsafe_list));
    let planned = plan(&url, &options, None, &scene.places).unwrap_err();
    assert!(planned.to_string().starts_with(unsafe_list));
    assert!(plan(&url, &options, Some(other), &scene.places).is_ok());
    scene
        .web
        .put("/x/SHA256SUMS", Page::new(format!("{other}  b.tar\n{other} *a.tar\n")));
    refused(fetch(Verify::Offered), &format!("'{}'", scene.web.url("/x/SHA256SUMS")));
    let right = of(body.as_bytes());
    scene
        .web
        .put("/x/a.tar.sha256", Page::new("<html>a page for everything</html>"));
    refused(fetch(Verify::Offered), &format!("'{}'", scene.web.url("/x/SHA256SUMS")));
    scene.web.put("/x/a.tar.sha256", Page::new(format!("{right}\n")));
    assert_eq!(fetch(Verify::Offered).unwrap(), body.as_bytes());
    // The list has changed, and the file that is kept has not.
    scene.web.put("/x/a.tar.sha256", Page::new(format!("{other}\n")));
    refused(
        fetch(Verify::Offered),
        &format!("'{}'", scene.web.url("/x/a.tar.sha256")),
    );
    assert_eq!(fetch(Verify::No).unwrap(), body.as_bytes());
}

#[test]
fn lists_of_longer_sums_count_as_well() {
    let scene = Scene::new();
    let body = "what it is".repeat(1000);
    let long = |bytes: &[u8]| Digest::Sha512([0; 64]).of_kind(bytes).hex();
    let (right, other) = (long(body.as_bytes()), long(b"other"));
    let page = || Page {
        etag: Some("\"1\""),
        ..Page::new(body.as_str())
    };
    scene.web.put("/x/a.tar", page());
    let fetch = |cache| {
        let options = DownloadOptions {
            cache,
            ..DownloadOptions::default()
        };
        scene.fetch_as("/x/a.tar", &options, None)
    };
    let list = |text: &str| scene.web.put("/x/SHA512SUMS", Page::new(text));
    for cache in [CacheUse::Skip, CacheUse::Use] {
        // One that is cut off is none, and one that is named twice neither.
        for none in [
            format!("{}  a.tar\n", &right[..127]),
            format!("{right}  a.tar\n{other}  a.tar\n"),
        ] {
            list(&none);
            assert_eq!(fetch(cache).unwrap(), body.as_bytes());
        }
        // What is kept is compared, too.
        list(&format!("{other}  a.tar\n"));
        let error = fetch(cache).unwrap_err();
        assert!(
            error.contains(&format!("its SHA-512 sum is {right}, and ")) && error.ends_with(&format!(" says {other}")),
            "{error}"
        );
        assert!(scene.kept().is_empty(), "{:?}", scene.kept());
        list(&format!("{right}  a.tar\n"));
        assert_eq!(fetch(cache).unwrap(), body.as_bytes());
    }
    // Without its server it is known by that.
    scene.web.asked();
    assert_eq!(fetch(CacheUse::Use).unwrap(), body.as_bytes());
    assert!(!scene.web.asked().contains(&"/x/a.tar".to_owned()));
    // Of two lists the one of the file alone counts, and of that the shorter sum.
    scene.web.put("/x/a.tar.sha512", Page::new(format!("{other}\n")));
    assert!(fetch(CacheUse::Use).unwrap_err().contains("a.tar.sha512' says"));
    scene
        .web
        .put("/x/a.tar.sha256", Page::new(format!("{}\n", of(body.as_bytes()))));
    assert_eq!(fetch(CacheUse::Use).unwrap(), body.as_bytes());
}

/// What is said while something is done.
#[derive(Default)]
struct Said(std::sync::Mutex<Vec<String>>);

impl Report for Said {
    fn phase(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
    fn progress(&self, _: u64, _: Option<u64>) {}
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(format!("warning: {message}"));
    }
}

#[test]
fn a_list_that_cannot_be_read_keeps_no_download_from_being_made() {
    let scene = Scene::new();
    let url: Url = scene.web.url("/x/a.tar").parse().unwrap();
    let said_of = |list: Page| {
        let said = Said::default();
        scene.web.put("/x/a.tar.sha256", list);
        let fetched = fetch(
            &url,
            &DownloadOptions::default(),
            None,
            &scene.places,
            &said,
            &Cancel::default(),
        );
        assert_eq!(fetched.unwrap().1, of(b"a"));
        said.0.into_inner().unwrap().join("\n")
    };
    scene.web.put("/x/a.tar", Page::new("a"));
    for (status, asked) in [(400, 1), (405, 1), (451, 1), (503, 2)] {
        scene.web.asked();
        let said = said_of(Page {
            status: Some(status),
            ..Page::default()
        });
        let warning = format!("a.tar.sha256': it answers with HTTP status {status}; going on without it\n");
        assert!(said.contains(&warning), "{said}");
        assert!(said.contains("nothing vouches for 'http://"), "{said}");
        let lists = scene.web.asked().into_iter().filter(|path| path == "/x/a.tar.sha256");
        assert_eq!(lists.count(), asked);
    }
    let large = said_of(Page::new(vec![b'a'; 5 << 20]));
    assert!(large.contains("it has more than"), "{large}");
    // The other list is still asked for, and no better than the file.
    let sums = Page::new(format!("{}  a.tar\n", of(b"a")));
    scene.web.put("/x/SHA256SUMS", sums);
    let other = said_of(Page::new(vec![b'a'; 5 << 20]));
    let changed = format!(
        "its SHA-256 sum is the one of '{list}'\nwarning: anybody on the way may have changed both '{url}' and '{list}'",
        list = scene.web.url("/x/SHA256SUMS")
    );
    assert!(other.contains(&changed), "{other}");
    // Where one has to vouch for it, that is fatal.
    let url: Url = url.as_str().replace("http://", "https://").parse().unwrap();
    let checked = DownloadOptions {
        verify: Verify::Checksum,
        ..DownloadOptions::default()
    };
    let demanded = offered(&url, &checked, &(), &Cancel::default()).map(drop);
    assert!(matches!(demanded, Err(SourceError::Download { .. })), "{demanded:?}");
}

#[test]
fn what_there_is_no_room_for_is_refused() {
    let scene = Scene::new();
    scene.web.put(
        "/a.tar",
        Page {
            etag: Some("\"1\""),
            length: Some(1 << 60),
            ..Page::new("a")
        },
    );
    let said = scene.refused("/a.tar");
    assert!(said.contains("': 1.0E are to come, and there is room for "), "{said}");
    assert!(scene.kept().is_empty(), "{:?}", scene.kept());
    assert_eq!(scene.web.asked().len(), 1);
}

#[test]
fn passwords_are_for_their_server_only() {
    let scene = Scene::new();
    // me:p@ss
    let page = Page {
        login: Some("Basic bWU6cEBzcw=="),
        ..Page::new("a")
    };
    scene.web.put("/a.tar", page.clone());
    scene.web.put(
        "/a.tar.sha256",
        Page {
            body: format!("{}\n", of(b"a")).into(),
            ..page
        },
    );
    assert!(scene.refused("/a.tar").contains("HTTP status 404"));
    let url: Url = scene.web.url("/a.tar").replace("://", "://me:p%40ss@").parse().unwrap();
    let said = Said::default();
    fetch(
        &url,
        &DownloadOptions::default(),
        None,
        &scene.places,
        &said,
        &Cancel::default(),
    )
    .unwrap();
    let mut told = said.0.into_inner().unwrap().join("\n");
    assert!(told.contains("its SHA-256 sum is the one of"), "{told}");
    for name in scene.kept() {
        told.push_str(&name);
        let kept = std::fs::read(scene.places.cache.join("downloads").join(name)).unwrap();
        told.push_str(&String::from_utf8_lossy(&kept));
    }
    assert!(
        ["me:", "p@ss", "p%40ss", "bWU6"]
            .iter()
            .all(|secret| !told.contains(secret)),
        "{told}"
    );
    let kept = |url: &Url| {
        let shelf = Shelf::lock(url, &scene.places, &(), &Cancel::default()).unwrap();
        shelf.known().is_some()
    };
    forget(&url, of(b"b"), &scene.places, &(), &Cancel::default());
    assert!(kept(&url));
    forget(&url, of(b"a"), &scene.places, &(), &Cancel::default());
    assert!(!kept(&url) && scene.kept().is_empty());
}

#[test]
fn servers_that_do_not_give_a_file_are_told() {
    let scene = Scene::new();
    let fetch = |path: &str| scene.fetch(path).unwrap_err();
    assert!(fetch("/none.tar").ends_with("there is no such file (HTTP status 404)"));
    for (status, told) in [
        (403, "its server does not give it (HTTP status 403)"),
        (400, "HTTP status 400"),
        (500, "HTTP status 500 (5 times)"),
    ] {
        scene.web.put(
            "/s.tar",
            Page {
                status: Some(status),
                ..Page::default()
            },
        );
        let said = fetch("/s.tar");
        assert!(said.ends_with(told), "{said}");
    }
    let to = |location: &str| {
        let location = Some(location.to_owned());
        scene.web.put(
            "/r.tar",
            Page {
                location,
                ..Page::default()
            },
        );
    };
    to("/r.tar");
    assert!(fetch("/r.tar").contains("in a circle"));
    for bad in ["file:///etc/passwd", "ftp://127.0.0.1/x"] {
        to(bad);
        scene.refused("/r.tar");
    }
    scene.web.put("/a.tar", Page::new("a"));
    to("a.tar");
    assert_eq!(scene.fetch("/r.tar").unwrap(), b"a");
    // Over a proxy; the host is one that there is not.
    let proxied = DownloadOptions {
        proxy: Some(scene.web.url("")),
        ..unchecked(CacheUse::Use)
    };
    let url: Url = "http://no-such-host.invalid/a.tar".parse().unwrap();
    let fetch = |options: &DownloadOptions| fetch_for(&url, options, &scene.places);
    assert_eq!(fetch(&proxied), Ok(of(b"a")));
    let direct = fetch(&DownloadOptions {
        proxy: Some("socks9://x".into()),
        ..unchecked(CacheUse::Skip)
    });
    assert!(direct.is_err());
    // Nobody listens: at once.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url: Url = format!("http://user:secret@127.0.0.1:{port}/a.tar").parse().unwrap();
    let said = fetch_for(&url, &unchecked(CacheUse::Use), &scene.places).unwrap_err();
    assert!(said.contains("refused") && !said.contains("secret"), "{said}");
}

fn fetch_for(url: &Url, options: &DownloadOptions, places: &Places) -> Result<Sum, String> {
    let fetched = fetch(url, options, None, places, &(), &Cancel::default());
    fetched.map(|(_, sum)| sum).map_err(|error| error.to_string())
}

#[test]
fn a_download_that_is_cancelled_ends_and_is_gone_on_with() {
    let scene = Scene::new();
    let cancel = Cancel::default();
    cancel.cancel();
    let url: Url = scene.web.url("/a.tar").parse().unwrap();
    let error = fetch(&url, &unchecked(CacheUse::Use), None, &scene.places, &(), &cancel).unwrap_err();
    assert!(matches!(error, SourceError::Cancelled(_)), "{error}");
    assert!(scene.kept().is_empty());
}
