//! Files of variables: lines of NAME=VALUE, as containers are given them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::error::CliError;
use crate::ops::OpError;
use crate::sys::files::{read_regular, shown};

/// The largest file, bytes; execve(2) takes less.
const MAX: u64 = 4 << 20;

/// The variables of the files, one after the other.
pub(super) fn read_all(files: &[PathBuf]) -> Result<Vec<(OsString, OsString)>, CliError> {
    let mut variables = Vec::new();
    for file in files {
        let bytes = read_regular(file, MAX).map_err(OpError::from)?;
        variables.extend(parse(&bytes).map_err(|line| wrong(file, line))?);
    }
    Ok(variables)
}

fn wrong(file: &Path, line: usize) -> CliError {
    CliError::usage(format!("{}:{line}: NAME=VALUE is expected", shown(file)))
        .hint("values stand as they are, without quotes; lines that begin with # are left out")
}

/// The variables, or the number of the line that is none. Values are taken as they are: there is no quoting.
fn parse(bytes: &[u8]) -> Result<Vec<(OsString, OsString)>, usize> {
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.map(|(at, line)| (at + 1, line.strip_suffix(b"\r").unwrap_or(line)));
    let said = lines.filter(|(_, line)| !line.trim_ascii().is_empty() && !line.trim_ascii_start().starts_with(b"#"));
    said.map(|(number, line)| {
        let line = line.trim_ascii_start();
        let equals = line.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
        let (name, value) = line.split_at(equals.ok_or(number)?);
        if name.iter().any(u8::is_ascii_whitespace) || line.contains(&0) {
            return Err(number);
        }
        Ok((
            OsString::from_vec(name.to_vec()),
            OsString::from_vec(value[1..].to_vec()),
        ))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_are() {
        let text = b"# comment\n\nA=1\n  B=two words \r\nC=\"x\"=y\n\t# D=4\nE=\nF=\xff";
        let read = parse(text).unwrap();
        let pairs: Vec<(&[u8], &[u8])> = read
            .iter()
            .map(|(name, value)| (name.as_encoded_bytes(), value.as_encoded_bytes()))
            .collect();
        assert_eq!(
            pairs,
            [
                (&b"A"[..], &b"1"[..]),
                (b"B", b"two words "),
                (b"C", b"\"x\"=y"),
                (b"E", b""),
                (b"F", b"\xff")
            ]
        );
        for (text, line) in [(&b"A"[..], 1), (b"A=1\n=2", 2), (b"\nexport A=1", 2), (b"A=\0", 1)] {
            assert_eq!(parse(text), Err(line), "{text:?}");
        }
    }
}
