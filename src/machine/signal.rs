//! Signals as systemd reads and writes them: see signal(7), and `signal_from_string()` in systemd.

use std::fmt;
use std::str::FromStr;

use nix::libc;
use nix::sys::signal::Signal as Named;

/// A signal's number, from 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

/// Why a text is no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// A number, or an offset, that no signal has.
    #[error(
        "signals have the numbers 1 to 64; those of real time are RTMIN to RTMIN+{}",
        realtime()
    )]
    Range,
    /// No name of a signal.
    #[error("there is no such signal: did you mean {0}?")]
    Unknown(String),
}

/// How many signals of real time there are, less one.
fn realtime() -> i32 {
    libc::SIGRTMAX() - libc::SIGRTMIN()
}

impl Signal {
    /// SIGKILL, which nothing can withstand.
    pub const KILL: Self = Self(libc::SIGKILL);

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// All names, without `SIG`; of those of real time the first and the last.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Named::iterator()
            .map(Named::as_str)
            .chain(["SIGRTMIN", "SIGRTMAX"])
            .filter_map(|name| name.strip_prefix("SIG"))
    }

    fn checked(number: i32) -> Result<Self, SignalError> {
        (1..=libc::SIGRTMAX())
            .contains(&number)
            .then_some(Self(number))
            .ok_or(SignalError::Range)
    }
}

/// `SIGTERM`, `SIGRTMIN+4`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (Named::try_from(self.0), self.0 - libc::SIGRTMIN()) {
            (Ok(named), _) => f.write_str(named.as_str()),
            (Err(_), 0) => f.write_str("SIGRTMIN"),
            (Err(_), offset @ 1..) => write!(f, "SIGRTMIN+{offset}"),
            (Err(_), _) => write!(f, "{}", self.0),
        }
    }
}

/// A number; a name with or without `SIG`, in either case; `RTMIN`, `RTMIN+N`, `RTMAX`, `RTMAX-N`.
impl FromStr for Signal {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let is_number = text
            .strip_prefix(['-', '+'])
            .unwrap_or(text)
            .starts_with(|c: char| c.is_ascii_digit());
        if is_number {
            return text.parse().map_err(|_| SignalError::Range).and_then(Self::checked);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
            None if rest.is_empty() => Some(Ok(0)),
            Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let offset = digits.parse().ok().filter(|offset| *offset <= realtime());
                Some(offset.ok_or(SignalError::Range))
            }
            _ => None,
        };
        if let Some(offset) = name.strip_prefix("RTMIN").and_then(|rest| offset(rest, '+')) {
            return Ok(Self(libc::SIGRTMIN() + offset?));
        }
        if let Some(offset) = name.strip_prefix("RTMAX").and_then(|rest| offset(rest, '-')) {
            return Ok(Self(libc::SIGRTMAX() - offset?));
        }
        let named = Named::iterator().find(|named| named.as_str().strip_prefix("SIG") == Some(name));
        named
            .map(|named| Self(named as i32))
            .ok_or_else(|| SignalError::Unknown(nearest(name)))
    }
}

/// The name that is most like this one.
fn nearest(name: &str) -> String {
    let near = Signal::names().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    near.unwrap_or("TERM").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_systemd_does() {
        let number = |text: &str| text.parse::<Signal>().map(Signal::number);
        for (text, wanted) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("hup", 1),
            ("9", 9),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+4", 38),
            ("RTMIN+30", 64),
            ("RTMAX-30", 34),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(number(text), Ok(wanted), "{text}");
        }
        for text in [
            "0",
            "65",
            "-9",
            "RTMIN+31",
            "RTMAX-31",
            "99999999999",
            "RTMIN+99999999999",
        ] {
            assert_eq!(number(text), Err(SignalError::Range), "{text}");
        }
        for (text, near) in [
            ("TREM", "TERM"),
            ("SIGKIL", "KILL"),
            ("RTMIN4", "RTMIN"),
            ("RTMIN+", "RTMIN"),
        ] {
            assert_eq!(number(text), Err(SignalError::Unknown(near.to_owned())), "{text}");
        }
        assert!(number("").is_err() && number("SIG").is_err() && number("9x").is_err());
    }

    #[test]
    fn signals_are_written_as_systemd_does() {
        let shown = [1, 15, 34, 38, 64].map(|number| Signal(number).to_string());
        assert_eq!(shown, ["SIGHUP", "SIGTERM", "SIGRTMIN", "SIGRTMIN+4", "SIGRTMIN+30"]);
    }
}
