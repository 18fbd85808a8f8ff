//! The `$6$` password hash, as Ulrich Drepper's "Unix crypt using SHA-256 and SHA-512" specifies it, with 5000 rounds.

use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ROUNDS: u32 = 5000;
const SIZE: usize = 64;

type Block = Zeroizing<[u8; SIZE]>;

/// `$6$SALT$HASH`; the salt is at most 16 characters of crypt's alphabet.
pub(super) fn crypt(password: &[u8], salt: &str) -> String {
    let salt_bytes = salt.as_bytes();
    let alternate = digest(&[password, salt_bytes, password]);
    // Room for all of it: a vector that grows leaves copies of the password behind.
    let mut start = Zeroizing::new(Vec::with_capacity(32 * password.len().max(SIZE)));
    start.extend_from_slice(password);
    start.extend_from_slice(salt_bytes);
    extend(&mut start, &alternate, password.len());
    let mut bits = password.len();
    while bits > 0 {
        start.extend_from_slice(if bits & 1 == 1 { alternate.as_slice() } else { password });
        bits >>= 1;
    }
    let mut result = digest(&[&start]);

    let repeated = Zeroizing::new(password.repeat(password.len()));
    let of_password = stretched(&digest(&[&repeated]), password.len());
    let repeated = salt_bytes.repeat(16 + usize::from(result[0]));
    let of_salt = stretched(&digest(&[&repeated]), salt_bytes.len());
    for round in 0..ROUNDS {
        let odd = round % 2 == 1;
        let first: &[u8] = if odd { &of_password } else { result.as_slice() };
        let salted: &[u8] = if round % 3 == 0 { &[] } else { &of_salt };
        let again: &[u8] = if round % 7 == 0 { &[] } else { &of_password };
        let last: &[u8] = if odd { result.as_slice() } else { &of_password };
        result = digest(&[first, salted, again, last]);
    }
    format!("$6${salt}${}", encode(&result))
}

fn digest(parts: &[&[u8]]) -> Block {
    let mut hash = Sha512::new();
    for part in parts {
        hash.update(part);
    }
    Zeroizing::new(hash.finalize().into())
}

/// Appends `length` bytes of `block`, repeated as often as needed.
fn extend(bytes: &mut Vec<u8>, block: &Block, length: usize) {
    bytes.extend(block.iter().cycle().take(length));
}

fn stretched(block: &Block, length: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    extend(&mut bytes, block, length);
    bytes
}

/// Three bytes make four characters, least significant first; which three, goes round in steps of 21.
fn encode(hash: &Block) -> String {
    let mut text = String::with_capacity(86);
    let mut push = |value: u32, count: u32| {
        for shift in 0..count {
            text.push(char::from(ALPHABET[(value >> (6 * shift)) as usize & 63]));
        }
    };
    let byte = |index: usize| u32::from(hash[index]);
    for step in 0..21 {
        let three = [step, step + 21, step + 42];
        let [a, b, c] = match step % 3 {
            0 => three,
            1 => [three[1], three[2], three[0]],
            _ => [three[2], three[0], three[1]],
        };
        push(byte(a) << 16 | byte(b) << 8 | byte(c), 4);
    }
    push(byte(63), 2);
    text
}

/// Sixteen characters of salt out of random bytes.
pub(super) fn salt(random: [u8; 16]) -> String {
    random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 63)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl passwd -6 -salt SALT PASSWORD`.
    #[test]
    fn agrees_with_openssl() {
        let vectors = [
            (
                "Hello world!".to_owned(),
                "saltstring",
                "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            ),
            (
                "a".to_owned(),
                "x",
                "6Zqbz8j5rMHIeJ1ujjjFXuZXSa/VORj.fVUEQcJc.rjR9.wCKlhZuymRQLtIEzcxNmqwX/fRNvM45BbvFayY51",
            ),
            (
                "p".repeat(63),
                "0123456789abcdef",
                "bs4wHMW/Iai./8ivzKCTyABM7CjcVzS0F0U2uLklaOnFiccQmwnvfj0soVLlegGFGsGGKhfyfQ54y5pQNoypy1",
            ),
            (
                "q".repeat(64),
                "0123456789abcdef",
                "g/PhgihMNO7CbdOSw86gyiDLpO.0uePH5RL1h1R7xB/WfpMUFCDUT0lWALNFW5rL/WktOZQxUEFo5qufQO2sj1",
            ),
            (
                "r".repeat(65),
                "abc",
                "qo/dA3Hpv/rNaTztJ2iEhhEGRQAPlk2ah71/xNFsrxRqvb0czWjwm4fykAJd/1XYLr1QuDwS9MEJuDZJg3FMc1",
            ),
            (
                "Grüße und ein langes Paßwort ".repeat(7),
                "zz",
                "lIcYbAqqgu6h2xwg.0MyT0vDIszbs5rE9GCCnmlG.vtT6/EMvaKbMbVCb9jioqtrY7U7Fp8PO/6ElIuK7m1yD0",
            ),
        ];
        for (password, salt, hash) in vectors {
            assert_eq!(crypt(password.as_bytes(), salt), format!("$6${salt}${hash}"));
        }
    }
}
