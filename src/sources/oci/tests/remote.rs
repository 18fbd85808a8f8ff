//! A registry that asks who we are, sends elsewhere, and lies.

use super::*;
use crate::sources::web::{Page, Web};

/// An image, and a server that has it as `a/b:1`.
fn served() -> (Scene, Web, Value) {
    let scene = Scene::new();
    let image = scene.image(&[gzip(&base()), upper()]);
    let web = Web::new();
    for entry in fs::read_dir(scene.path("image/blobs/sha256"))
        .unwrap()
        .map(Result::unwrap)
    {
        let name = entry.file_name().into_string().unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        web.put(&format!("/v2/a/b/blobs/sha256:{name}"), Page::new(bytes.clone()));
        web.put(&format!("/v2/a/b/manifests/sha256:{name}"), Page::new(bytes));
    }
    web.put("/v2/a/b/manifests/1", manifest(&scene, &image));
    (scene, web, image)
}

fn manifest(scene: &Scene, image: &Value) -> Page {
    let path = image["digest"].as_str().unwrap().replace(':', "/");
    Page::new(fs::read(scene.path("image/blobs").join(path)).unwrap())
}

fn named(web: &Web, rest: &str) -> String {
    format!("docker://{}/a/b{rest}", web.url("").trim_start_matches("http://"))
}

fn here(cache: CacheUse) -> Options {
    Options {
        image: ImageOptions {
            is_trusted: true,
            ..ImageOptions::default()
        },
        download: DownloadOptions {
            cache,
            ..DownloadOptions::default()
        },
        ..Options::default()
    }
}

fn blob_path(bytes: &[u8]) -> String {
    format!("/v2/a/b/blobs/{}", digest(bytes))
}

#[test]
fn layers_are_fetched_once() {
    let (scene, web, image) = served();
    scene.fill(&named(&web, ":1"), &here(CacheUse::Use)).unwrap();
    scene.has(&STACKED);
    web.asked();
    let pinned = format!("@{}", image["digest"].as_str().unwrap());
    scene.fill(&named(&web, &pinned), &here(CacheUse::Use)).unwrap();
    let asked = web.asked();
    assert!(!asked.contains(&blob_path(&upper())), "{asked:?}");
    // What has rotted there is found out, forgotten, and had again.
    let kept = scene.path("cache/downloads").join(&Sum::of(&upper()).to_string()[..32]);
    fs::write(&kept, base()).unwrap();
    let error = scene.fill(&named(&web, ":1"), &here(CacheUse::Use)).unwrap_err();
    assert!(error.contains("layer 2 of 2"), "{error}");
    scene.fill(&named(&web, ":1"), &here(CacheUse::Use)).unwrap();
    // Without keeping anything.
    let (scene, web, _) = served();
    scene.fill(&named(&web, ":1"), &here(CacheUse::Skip)).unwrap();
    assert_eq!(fs::read_dir(scene.path("cache/downloads")).unwrap().count(), 0);
}

#[test]
fn layers_with_longer_digests_are_fetched_and_not_kept() {
    let (scene, web) = (Scene::new(), Web::new());
    let image = long_image(&scene);
    for entry in fs::read_dir(scene.path("image/blobs/sha512"))
        .unwrap()
        .map(Result::unwrap)
    {
        let name = entry.file_name().into_string().unwrap();
        for kind in ["blobs", "manifests"] {
            let page = Page::new(fs::read(entry.path()).unwrap());
            web.put(&format!("/v2/a/b/{kind}/sha512:{name}"), page);
        }
    }
    let pinned = named(&web, &format!("@{}", image["digest"].as_str().unwrap()));
    scene.fill(&pinned, &here(CacheUse::Use)).unwrap();
    scene.has(&STACKED);
    assert!(
        !scene.path("cache/downloads").exists() || fs::read_dir(scene.path("cache/downloads")).unwrap().count() == 0
    );
    // Of the right length, and another.
    let mut other = upper();
    other[600] ^= 1;
    let wanted = Digest::Sha512([0; 64]).of_kind(&upper());
    web.put(&format!("/v2/a/b/blobs/{wanted}"), Page::new(other));
    let error = scene.fill(&pinned, &here(CacheUse::Use)).unwrap_err();
    assert!(
        error.starts_with("layer 2 of 2") && error.contains("its SHA-512 sum is"),
        "{error}"
    );
}

#[test]
fn what_was_cut_off_is_gone_on_with() {
    let (scene, web, _) = served();
    let path = blob_path(&upper());
    let cut = Page {
        etag: Some("\"x\""),
        cut: (700, 1),
        ..Page::new(upper())
    };
    web.put(&path, cut);
    scene.fill(&named(&web, ":1"), &here(CacheUse::Use)).unwrap();
    let asked = web.asked();
    assert!(asked.contains(&format!("{path} bytes=700-")), "{asked:?}");
}

#[test]
fn tokens_are_had_where_the_registry_says() {
    let (scene, web, image) = served();
    let asks = |path: &str, page: Page| {
        let challenge = format!(
            r#"Bearer realm="{}",service="s v",scope="repository:a/b:pull""#,
            web.url("/token")
        );
        web.put(
            path,
            Page {
                login: Some("Bearer t0ken"),
                challenge: Some(challenge),
                ..page
            },
        );
    };
    asks("/v2/a/b/manifests/1", manifest(&scene, &image));
    asks(&blob_path(&upper()), Page::new(upper()));
    let token = "/token?service=s%20v&scope=repository%3Aa%2Fb%3Apull";
    web.put(token, Page::new(r#"{"token":"t0ken","expires_in":300}"#));
    scene.fill(&named(&web, ":1"), &here(CacheUse::Skip)).unwrap();
    // None, or one that would be a header of its own.
    for bad in ["{}", r#"{"token":"a\r\nX: y"}"#, "<html>"] {
        web.put(token, Page::new(bad));
        let error = scene.fill(&named(&web, ":1"), &here(CacheUse::Skip)).unwrap_err();
        assert!(error.contains("has given none"), "{error}");
    }
    // Nobody is sent credentials in the open.
    let challenge = r#"Bearer realm="http://example.org/token""#.to_owned();
    web.put(
        "/v2/a/b/manifests/1",
        Page {
            login: Some("Bearer x"),
            challenge: Some(challenge),
            ..Page::new("")
        },
    );
    let error = scene.fill(&named(&web, ":1"), &here(CacheUse::Skip)).unwrap_err();
    assert!(
        error.contains("'http://example.org/token', which is not https"),
        "{error}"
    );
    for challenge in ["Basic realm=\"x\"", "Negotiate", ""] {
        let page = Page {
            login: Some("Basic x"),
            challenge: Some(challenge.to_owned()),
            ..Page::new("")
        };
        web.put("/v2/a/b/manifests/1", page);
        let error = scene.fill(&named(&web, ":1"), &here(CacheUse::Skip)).unwrap_err();
        assert!(
            error.contains("does not give the image to us (HTTP status 401)"),
            "{error}"
        );
    }
}

#[test]
fn a_registry_may_send_elsewhere_but_not_anywhere() {
    let (scene, web, image) = served();
    let other = Web::new();
    let sent = |to: &str| {
        let page = Page {
            location: Some(to.to_owned()),
            status: Some(307),
            ..Page::default()
        };
        web.put(&blob_path(&upper()), page);
        scene.fill(&named(&web, ":1"), &here(CacheUse::Skip))
    };
    other.put("/x", Page::new(upper()));
    sent(&other.url("/x")).unwrap();
    scene.has(&STACKED);
    for (to, message) in [
        (
            "file:///etc/passwd",
            "it redirects to 'file:///etc/passwd': only http and https are known",
        ),
        (
            "http://192.0.2.1/x",
            "it redirects to 'http://192.0.2.1/x', which is not https",
        ),
        (
            "http://u:secret@192.0.2.1/x",
            "it redirects to 'http://192.0.2.1/x', which is not https",
        ),
        ("ftp://x/y", "only http and https are known"),
    ] {
        let error = sent(to).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    let path = blob_path(&upper());
    assert!(sent(&path).unwrap_err().contains("redirects in a circle"));
    // Who is elsewhere is told nothing of who we are.
    web.put(
        &path,
        Page {
            location: Some(other.url("/secret")),
            status: Some(307),
            ..Page::default()
        },
    );
    let challenge = Some(format!(r#"Bearer realm="{}""#, web.url("/token")));
    let manifest = manifest(&scene, &image);
    web.put(
        "/v2/a/b/manifests/1",
        Page {
            login: Some("Bearer t"),
            challenge,
            ..manifest
        },
    );
    web.put(
        "/token?scope=repository%3Aa%2Fb%3Apull",
        Page::new(r#"{"access_token":"t"}"#),
    );
    other.put(
        "/secret",
        Page {
            login: Some("Bearer t"),
            ..Page::new(upper())
        },
    );
    let error = scene.fill(&named(&web, ":1"), &here(CacheUse::Skip)).unwrap_err();
    assert!(
        error.contains("layer 2 of 2 of ") && error.contains("is missing"),
        "{error}"
    );
}

#[test]
fn a_registry_that_lies_is_found_out() {
    let (scene, web, image) = served();
    let path = blob_path(&upper());
    let refused = |rest: &str, message: &str| {
        let error = scene.fill(&named(&web, rest), &here(CacheUse::Use)).unwrap_err();
        assert!(error.contains(message), "no {message:?} in {error:?}");
    };
    web.put(&path, Page::new(base()));
    refused(
        ":1",
        if base().len() > upper().len() {
            "more bytes than the image says"
        } else {
            "is not what it should be"
        },
    );
    let mut other = upper();
    other[600] ^= 1;
    web.put(&path, Page::new(other));
    refused(":1", "layer 2 of 2 of ");
    web.put(
        &path,
        Page {
            length: Some(1 << 40),
            ..Page::new(upper())
        },
    );
    refused(":1", "more bytes than the image says");
    web.put(
        &path,
        Page {
            length: Some(10),
            ..Page::new(upper())
        },
    );
    refused(":1", "is not what it should be");
    web.put(
        &path,
        Page {
            status: Some(500),
            ..Page::default()
        },
    );
    refused(":1", "HTTP status 500");
    web.put(
        &path,
        Page {
            status: Some(404),
            ..Page::default()
        },
    );
    refused(":1", "is missing: there is no sha256:");
    web.put("/v2/a/b/manifests/1", Page::new(vec![b' '; 5 << 20]));
    refused(":1", "it has more than");
    web.put("/v2/a/b/manifests/1", Page::new("<html>"));
    refused(":1", "the manifest of ");
    refused(":2", "it has not the image (HTTP status 404)");
    // Another one under a digest.
    let digest = image["digest"].as_str().unwrap();
    web.put(&format!("/v2/a/b/manifests/{digest}"), Page::new("{}"));
    refused(&format!("@{digest}"), "is not what it should be");
    let nothing_kept = fs::read_dir(scene.path("cache/downloads")).unwrap();
    let parts = nothing_kept.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part"));
    assert_eq!(parts.count(), 0);
}

#[test]
fn only_a_registry_on_this_host_is_trusted_as_it_is() {
    let (scene, web, _) = served();
    let error = scene.fill("docker://quay.io/a/b", &here(CacheUse::Skip)).unwrap_err();
    assert!(error.starts_with("'quay.io' is not on this host"), "{error}");
    let error = scene.fill(&named(&web, ":1"), &Options::default()).unwrap_err();
    assert!(
        error.starts_with("cannot get '") || error.starts_with("cannot download"),
        "{error}"
    );
}
