//! Downloads that somebody has signed, or should have.

use super::*;
use crate::sources::trust::{Keyring, write_pin};

const DATA: &str = "data\n";
const BY_ALICE: &str = include_str!("../../trust/fixtures/data.alice.asc");
const BY_MALLORY: &str = include_str!("../../trust/fixtures/data.mallory.asc");
const SUMS: &str = include_str!("../../trust/fixtures/sums");
const SUMS_BY_ALICE: &str = include_str!("../../trust/fixtures/sums.asc");
const SUMS_IN_ONE: &str = include_str!("../../trust/fixtures/sums.clear");
const ALICE: &str = include_str!("../../trust/fixtures/alice.asc");

struct Signed {
    scene: Scene,
    options: DownloadOptions,
}

impl Signed {
    fn new() -> Self {
        let scene = Scene::new();
        let keyring = scene.places.cache.with_file_name("alice.asc");
        std::fs::write(&keyring, ALICE).unwrap();
        let put = Self {
            options: DownloadOptions {
                verify: Verify::Signature,
                keyring: Some(keyring),
                ..DownloadOptions::default()
            },
            scene,
        };
        put.put("data", DATA);
        put
    }

    fn put(&self, name: &str, body: &str) {
        let page = Page {
            etag: (name == "data").then_some("\"1\""),
            ..Page::new(body)
        };
        self.scene.web.put(&format!("/x/{name}"), page);
    }

    fn gone(&self, name: &str) {
        let page = Page {
            status: Some(404),
            ..Page::default()
        };
        self.scene.web.put(&format!("/x/{name}"), page);
    }

    fn fetch(&self) -> Result<String, String> {
        self.fetch_with(None)
    }

    fn fetch_with(&self, sum: Option<Sum>) -> Result<String, String> {
        let url: Url = self.scene.web.url("/x/data").parse().unwrap();
        let said = Said::default();
        let fetched = fetch(&url, &self.options, sum, &self.scene.places, &said, &Cancel::default());
        fetched.map(drop).map_err(|error| error.to_string())?;
        Ok(said.0.into_inner().unwrap().join("\n"))
    }

    #[track_caller]
    fn refused(&self, why: &str) {
        let error = self.fetch().unwrap_err();
        assert!(error.contains(why), "no {why:?} in {error}");
        assert!(self.scene.kept().is_empty(), "{:?}", self.scene.kept());
    }
}

#[test]
fn a_signature_over_the_file_is_checked() {
    let mut signed = Signed::new();
    signed.refused("is not signed: there is neither");
    signed.put("data.asc", "<html>a page for everything</html>");
    signed.refused("SHA256SUMS' signed, nor those of SHA-512 ('");
    signed.refused("data.asc' is no signature: it is no OpenPGP file)");
    signed.put("data.asc", &"x".repeat(1 << 20));
    signed.refused("is not signed: there is neither");
    for cache in [CacheUse::Use, CacheUse::Skip] {
        signed.options.cache = cache;
        signed.put("data.asc", BY_MALLORY);
        signed.refused("data.asc' was made by key 21C887CBC3B54E61DCEE25889A9D64D9560F65E5, which is not in '");
        signed.put("data.asc", SUMS_BY_ALICE);
        signed.refused("was made over something else");
        signed.put("data.asc", BY_ALICE);
        signed.put("data", "date\n");
        signed.refused("was made over something else");
        signed.put("data", DATA);
    }
    let said = signed.fetch().unwrap();
    assert!(
        said.contains("it is signed by") && said.contains("444F1465971BA27BC5C078101366B69B99F043E6"),
        "{said}"
    );
    assert!(!said.contains("warning"), "{said}");
    // With the sum that the caller knows besides, which may be another's.
    assert!(
        signed
            .fetch_with(Some(of(DATA.as_bytes())))
            .unwrap()
            .contains("--sha256")
    );
    assert!(
        signed
            .fetch_with(Some(of(b"x")))
            .unwrap_err()
            .contains("and --sha256 says")
    );
    // What is kept is checked again: the signature may be another by now.
    signed.options.cache = CacheUse::Use;
    signed.fetch().unwrap();
    assert!(
        signed
            .fetch()
            .unwrap()
            .contains("using the download of data that is kept")
    );
    signed.put("data.asc", BY_MALLORY);
    signed.refused("which is not in");
    // Of other names.
    signed.gone("data.asc");
    signed.put("data.sig", BY_ALICE);
    signed.fetch().unwrap();
    // A server that fails is not one that has none.
    let page = Page {
        status: Some(500),
        ..Page::default()
    };
    signed.scene.web.put("/x/data.asc", page);
    assert!(signed.fetch().unwrap_err().contains("HTTP status 500"));
}

#[test]
fn a_signed_list_vouches_for_the_file() {
    let mut signed = Signed::new();
    let list = signed.scene.web.url("/x/SHA256SUMS");
    signed.put("SHA256SUMS", SUMS);
    signed.refused("nor is");
    signed.put("SHA256SUMS.asc", BY_ALICE);
    signed.refused(&format!(
        "'{list}' is not trusted: its signature '{list}.asc' was made over something else"
    ));
    signed.put("SHA256SUMS.asc", SUMS_BY_ALICE);
    signed.put("SHA256SUMS", &SUMS.replace("other", "evil"));
    signed.refused("was made over something else");
    signed.put("SHA256SUMS", SUMS);
    let said = signed.fetch().unwrap();
    assert!(
        said.contains(&format!("its SHA-256 sum is the one of '{list}', signed by ")),
        "{said}"
    );
    assert!(!said.contains("warning"), "{said}");
    let error = signed.fetch_with(Some(of(b"x"))).unwrap_err();
    assert!(error.contains("and --sha256 says"), "{error}");
    signed.gone("SHA256SUMS.asc");
    signed.put("SHA256SUMS.gpg", SUMS_BY_ALICE);
    signed.fetch().unwrap();
    // The file is not the one that is in the list.
    signed.put("data", "date\n");
    signed.options.cache = CacheUse::Skip;
    assert!(signed.fetch().unwrap_err().contains("is not what it should be"));
    signed.put("data", DATA);
    // In one file with its signature; also as the one of this file alone, without the list.
    signed.gone("SHA256SUMS.gpg");
    signed.put("SHA256SUMS", SUMS_IN_ONE);
    signed.fetch().unwrap();
    signed.put("SHA256SUMS", &SUMS_IN_ONE.replace("other", "evil"));
    assert!(signed.fetch().unwrap_err().contains("something else"));
    // Also beside a plain one, which says nothing then.
    signed.put("SHA256SUMS", &SUMS.replace('6', "7"));
    signed.put("SHA256SUMS.asc", SUMS_IN_ONE);
    signed.fetch().unwrap();
    signed.gone("SHA256SUMS.asc");
    signed.gone("SHA256SUMS");
    signed.put("data.sha256.asc", SUMS_IN_ONE);
    signed.fetch().unwrap();
    // One that is signed and about another file says nothing of this one.
    signed.put("other.tar", DATA);
    let url: Url = signed.scene.web.url("/x/other.tar").parse().unwrap();
    signed.put("other.tar.sha256.asc", SUMS_IN_ONE);
    let places = &signed.scene.places;
    let other = fetch(&url, &signed.options, None, places, &(), &Cancel::default()).unwrap_err();
    assert!(other.to_string().contains("is not signed"), "{other}");
}

#[test]
fn a_pinned_key_is_asked_without_a_word() {
    let mut signed = Signed::new();
    signed.options = DownloadOptions::default();
    let keyring = Keyring::parse(ALICE.as_bytes(), Path::new("k")).unwrap();
    std::fs::create_dir(&signed.scene.places.keys).unwrap();
    let prefix: Url = signed.scene.web.url("/x").parse().unwrap();
    signed.options.verify = Verify::Signature;
    signed.refused("no key is known that");
    signed.options.verify = Verify::Offered;
    let pin = write_pin(&signed.scene.places.keys, &prefix, &keyring, None).unwrap();
    signed.refused("is not signed");
    signed.put("data.asc", BY_MALLORY);
    signed.refused(&format!("which is not in '{}'", pin.display()));
    // Sums say nothing of whose it is.
    let error = signed.fetch_with(Some(of(DATA.as_bytes()))).unwrap_err();
    assert!(error.contains("which is not in"), "{error}");
    // The keys of the caller do not stand above those that are pinned.
    let mallory = signed.scene.places.cache.with_file_name("mallory.asc");
    std::fs::write(&mallory, include_str!("../../trust/fixtures/mallory.asc")).unwrap();
    signed.options.keyring = Some(mallory);
    signed.refused("which is not in");
    signed.options.keyring = None;
    let url: Url = signed.scene.web.url("/x/data").parse().unwrap();
    let steps = plan(&url, &signed.options, None, &signed.scene.places)
        .unwrap()
        .join("\n");
    assert!(
        steps.contains(&format!("check that it is signed by a key of '{}'", pin.display())),
        "{steps}"
    );
    signed.options.verify = Verify::No;
    let said = signed.fetch().unwrap();
    assert!(
        said.contains(&format!("warning: the key that is pinned for '{prefix}' is not asked")),
        "{said}"
    );
    signed.options.verify = Verify::Offered;
    signed.put("data.asc", BY_ALICE);
    assert!(signed.fetch().unwrap().contains("it is signed by"));
    // A pin that cannot be read may be the one that counts.
    std::fs::write(&pin, "URL: http://h\n").unwrap();
    let error = signed.fetch().unwrap_err();
    assert!(error.contains("no OpenPGP keys"), "{error}");
}
