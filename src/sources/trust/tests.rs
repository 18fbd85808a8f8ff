//! Keys and signatures that gpg made, checked by what this host has.

use super::*;

fn keyring(text: &str) -> Keyring {
    Keyring::parse(text.as_bytes(), Path::new("keys.asc")).unwrap()
}

fn check(key: &str, signature: &str, data: &[u8]) -> Result<Signer, String> {
    let signature = Signature::parse(signature.as_bytes()).unwrap();
    let names = ("http://h/data", "http://h/data.asc");
    let checked = signature.check_bytes(data, &[keyring(key)], names, &Cancel::default());
    checked.map_err(|error| error.to_string())
}

const ALICE: &str = include_str!("fixtures/alice.asc");
const BY_ALICE: &str = include_str!("fixtures/data.alice.asc");

#[test]
fn signatures_are_checked() {
    let signer = check(ALICE, BY_ALICE, b"data\n").unwrap();
    assert!(
        signer.to_string().contains("444F1465971BA27BC5C078101366B69B99F043E6"),
        "{signer}"
    );
    let refused = |key, signature, data| check(key, signature, data).unwrap_err();
    let changed = refused(ALICE, BY_ALICE, b"date\n");
    assert!(
        changed
            .starts_with("'http://h/data' is not trusted: its signature 'http://h/data.asc' was made over something")
    );
    let other = refused(ALICE, include_str!("fixtures/data.mallory.asc"), b"data\n");
    assert!(
        other.contains("by key 21C887CBC3B54E61DCEE25889A9D64D9560F65E5, which is not in 'keys.asc'"),
        "{other}"
    );
    let revoked = include_str!("fixtures/revoked.asc");
    assert!(refused(revoked, include_str!("fixtures/data.revoked.asc"), b"data\n").contains("revoked"));
    // A text that is signed in one file, and one that is not.
    let clear = include_bytes!("fixtures/list.clear");
    let (text, _) = signed_text(clear, &[keyring(ALICE)], "u", &Cancel::default())
        .unwrap()
        .unwrap();
    assert_eq!(text, "one\r\n- two\r\nthree\r\n");
    let lies = String::from_utf8_lossy(clear).replace("three", "four");
    assert!(signed_text(lies.as_bytes(), &[keyring(ALICE)], "u", &Cancel::default()).is_err());
    assert!(
        signed_text(b"one", &[keyring(ALICE)], "u", &Cancel::default())
            .unwrap()
            .is_none()
    );
}

#[test]
fn every_keyring_has_a_word() {
    let signature = Signature::parse(BY_ALICE.as_bytes()).unwrap();
    let [alice, other] = [ALICE, include_str!("fixtures/mallory.asc")].map(keyring);
    let check = |keyrings: &[Keyring]| signature.check_bytes(b"data\n", keyrings, ("u", "s"), &Cancel::default());
    assert!(check(&[alice.clone().with(&other)]).is_ok());
    assert!(check(&[alice.clone(), other.clone().with(&alice)]).is_ok());
    assert!(check(&[alice, other]).is_err());
    assert!(check(&[]).is_err());
}
