//! Signatures are checked by gpgv(1), or by sqv(1) where that is all there is.
//!
//! They get what they read as open files of ours, by way of /proc: nothing of it lies anywhere under a name.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use rustix::fs::{MemfdFlags, memfd_create};

use super::{Keyring, Refusal, Signature, Signer, TrustError};
use crate::machine::Cancel;
use crate::sys::process::{Program, program_exists};

/// What a signature is over. Of a text gpgv leaves out the ends of lines, and what is behind 19,995 bytes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// All bytes of a file.
    File,
    /// A text whose lines are short: see [`LINE_MAX`].
    Text,
}

/// The longest line of a text, in bytes.
pub(super) const LINE_MAX: usize = 16 << 10;

/// Whether a signature is one over `data` by a key of the keyring.
pub(super) fn check(
    signature: &Signature,
    data: &File,
    over: Over,
    keyring: &Keyring,
    cancel: &Cancel,
) -> Result<Result<Signer, Refusal>, TrustError> {
    let keys = held(&keyring.bytes)?;
    let made = held(&signature.bytes)?;
    let paths = [&keys, &made, data].map(path);
    // gpgv first: it refuses what an expired key has signed, whenever that was.
    let is_gpgv = program_exists("gpgv");
    let program = if is_gpgv {
        let program = Program::new("gpgv").args(["--homedir", "/nonexistent", "--status-fd", "1"]);
        program.args(["--weak-digest", "SHA1", "--weak-digest", "RIPEMD160"])
    } else if program_exists("sqv") {
        Program::new("sqv")
    } else {
        return Err(TrustError::NoProgram);
    };
    let [keys, made, data] = paths;
    let program = program.args(["--keyring".to_owned(), keys, made, data]);
    let output = program.run_any(cancel, &mut |_| {})?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = || output.tail.last().cloned().unwrap_or_default();
    Ok(if is_gpgv {
        by_status(&said, over, &keyring.name, &last)
    } else if let (true, Some(fingerprint)) = (output.status.success(), said.lines().next()) {
        Ok(Signer {
            fingerprint: fingerprint.to_owned(),
            user: None,
        })
    } else {
        let shown = output.tail.join(" ");
        Err(of_sqv(&shown, &keyring.name))
    })
}

/// A file that has these bytes, and no name.
pub(super) fn held(bytes: &[u8]) -> Result<File, TrustError> {
    let failed = |source| TrustError::Io {
        action: "keep a file in memory",
        source,
    };
    let fd = memfd_create("machinist", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(failed)?;
    Ok(file)
}

/// Where another process of ours finds an open file; from its beginning, as it opens it anew.
fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// One signature, as gpgv tells of it.
#[derive(Default)]
struct Told {
    /// `GOODSIG`: whose it is.
    good: Option<String>,
    /// `VALIDSIG`: the fingerprint of the primary key.
    valid: Option<String>,
    refusal: Option<Refusal>,
}

/// What gpgv says by `--status-fd`, see doc/DETAILS of GnuPG: of each signature on its own, from `NEWSIG` to the next one.
///
/// One good one is enough, as publishers sign with the next key, too; but not if another says that the file was changed.
fn by_status(status: &str, over: Over, keys: &str, last: &dyn Fn() -> String) -> Result<Signer, Refusal> {
    let mut all: Vec<Told> = Vec::new();
    for line in status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] ")) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "NEWSIG" {
            all.push(Told::default());
        }
        let Some(told) = all.last_mut() else { continue };
        let (first, user) = rest.split_once(' ').unwrap_or((rest, ""));
        let who = || format!("{user} ({first})");
        let refuse = |told: &mut Told, refusal| {
            told.refusal.get_or_insert(refusal);
        };
        match word {
            "GOODSIG" => told.good = Some(user.to_owned()),
            "VALIDSIG" => {
                let words: Vec<&str> = rest.split(' ').collect();
                // 00 is over a file, 01 over a text; others are over keys, or over nothing.
                let class = words.get(8).copied().unwrap_or_default();
                match words.get(9).or(words.first()) {
                    Some(primary) if class == "00" || (class == "01" && over == Over::Text) => {
                        told.valid = Some((*primary).to_owned());
                    }
                    _ if class == "01" => refuse(
                        told,
                        Refusal::Other("it is over a text, of which some may be changed".to_owned()),
                    ),
                    _ => refuse(told, Refusal::Other("it is over no file".to_owned())),
                }
            }
            "BADSIG" => refuse(told, Refusal::Changed),
            "EXPSIG" => refuse(told, Refusal::Expired),
            "EXPKEYSIG" => refuse(told, Refusal::ExpiredKey(who())),
            "REVKEYSIG" => refuse(told, Refusal::RevokedKey(who())),
            "ERRSIG" => {
                // The reason, and the fingerprint where the signature has it.
                let words: Vec<&str> = user.split(' ').collect();
                let key = words.get(5).filter(|key| key.len() >= 40).copied().unwrap_or(first);
                refuse(
                    told,
                    match words.get(4) {
                        Some(&"9") => Refusal::Unknown {
                            key: key.to_owned(),
                            keys: keys.to_owned(),
                        },
                        _ => Refusal::Other(last()),
                    },
                );
            }
            _ => {}
        }
    }
    if all.iter().any(|told| told.refusal == Some(Refusal::Changed)) {
        return Err(Refusal::Changed);
    }
    let mut refusal = None;
    for told in all {
        match told {
            Told {
                good: Some(user),
                valid: Some(fingerprint),
                refusal: None,
            } => {
                return Ok(Signer {
                    fingerprint,
                    user: Some(user),
                });
            }
            // What was found out of one of the right keys says more than that there are others.
            told => {
                if let (None | Some(Refusal::Unknown { .. }), Some(other)) = (&refusal, told.refusal) {
                    refusal = Some(other);
                }
            }
        }
    }
    Err(refusal.unwrap_or_else(|| Refusal::Other(last())))
}

/// What sqv says is for people: only what has to be told apart is looked for in it.
fn of_sqv(said: &str, keys: &str) -> Refusal {
    let missing = said.split_once("Missing key ").map(|(_, rest)| rest);
    if let Some(key) = missing.and_then(|rest| rest.split([',', ' ']).next()) {
        return Refusal::Unknown {
            key: key.to_owned(),
            keys: keys.to_owned(),
        };
    }
    if said.contains("manipulated") {
        return Refusal::Changed;
    }
    Refusal::Other(said.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: &str = "444F1465971BA27BC5C078101366B69B99F043E6";

    fn read(lines: &[&str]) -> Result<Signer, Refusal> {
        let text: Vec<String> = lines.iter().map(|line| format!("[GNUPG:] {line}")).collect();
        by_status(&text.join("\n"), Over::File, "'keys'", &|| "last words".to_owned())
    }

    fn valid(class: &str) -> String {
        format!("VALIDSIG {FINGERPRINT} 2024-01-02 1704164645 0 4 0 22 8 {class} {FINGERPRINT}")
    }

    #[test]
    fn a_good_signature_is_one_that_nothing_is_wrong_with() {
        let (valid, good) = (valid("00"), "GOODSIG 1366B69B99F043E6 Alice <a@b>");
        let unknown = "ERRSIG 9A9D64D9560F65E5 22 8 00 1704164645 9 21C887CBC3B54E61DCEE25889A9D64D9560F65E5";
        let signer = read(&["NEWSIG", good, &valid]).unwrap();
        assert_eq!(signer.to_string(), format!("Alice <a@b> ({FINGERPRINT})"));
        // Another's beside it.
        assert!(read(&["NEWSIG", unknown, "NEWSIG", good, &valid]).is_ok());
        assert!(read(&["NEWSIG", good, &valid, "NEWSIG", unknown]).is_ok());
        let refused = |lines: &[&str]| read(lines).unwrap_err().to_string();
        assert!(
            refused(&["NEWSIG", unknown])
                .contains("key 21C887CBC3B54E61DCEE25889A9D64D9560F65E5, which is not in 'keys'")
        );
        assert!(refused(&["NEWSIG", good, &valid, "NEWSIG", "BADSIG 1 x"]).contains("something else"));
        assert!(refused(&["NEWSIG", "EXPKEYSIG 1 Carol", &valid]).contains("expired: Carol (1)"));
        assert!(refused(&["NEWSIG", "REVKEYSIG 1 Bob", &valid, "NEWSIG", unknown]).contains("revoked: Bob (1)"));
        assert!(refused(&["NEWSIG", "EXPSIG 1 x", &valid]).contains("has expired"));
        // Halves of two signatures make none, and one over a key is none over a file.
        assert!(refused(&["NEWSIG", good, "NEWSIG", &valid]).contains("last words"));
        assert!(refused(&[good, &valid]).contains("last words"));
        let over_key = self::valid("10");
        assert!(refused(&["NEWSIG", good, &over_key]).contains("over no file"));
        let over_text = format!("[GNUPG:] NEWSIG\n[GNUPG:] {good}\n[GNUPG:] {}", self::valid("01"));
        let of = |over| by_status(&over_text, over, "'keys'", &String::new);
        assert!(of(Over::Text).is_ok() && of(Over::File).unwrap_err().to_string().contains("over a text"));
        assert!(refused(&["NEWSIG", "ERRSIG 1 22 8 00 1 4"]).contains("last words"));
        assert!(refused(&[]).contains("last words"));
        // A name is the signer's own choice.
        let name = read(&["NEWSIG", "GOODSIG 1 \u{1b}[2J", &valid]).unwrap().to_string();
        assert!(name.starts_with("\\u{1b}[2J"), "{name}");
    }

    #[test]
    fn what_sqv_says_is_told_apart() {
        let missing = of_sqv("Missing key 21C8, which is needed to verify signature.", "'k'");
        assert_eq!(missing.to_string(), "was made by key 21C8, which is not in 'k'");
        assert_eq!(
            of_sqv("Verifying signature:  Message has been manipulated", ""),
            Refusal::Changed
        );
        assert!(matches!(of_sqv("else", ""), Refusal::Other(_)));
    }
}
