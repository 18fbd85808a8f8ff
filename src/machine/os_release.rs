//! os-release(5), the part that tables show.

/// What a root filesystem says it is. Every string is as the guest wrote it: pass it through
/// [`super::text::printable`] before it reaches a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct OsRelease {
    /// `ID=`, such as "debian"; "linux" if missing, as the specification says.
    pub id: String,
    /// `VERSION_ID=`, such as "13"; `None` if missing, as in Debian testing.
    pub version_id: Option<String>,
    /// `VERSION_CODENAME=`, such as "trixie".
    pub codename: Option<String>,
    /// `PRETTY_NAME=`, such as "Debian GNU/Linux 13 (trixie)".
    pub pretty_name: Option<String>,
}

/// The last releases whose systemd, older than 231, knows nothing of cgroup v2: `ID`, and the first number of `VERSION_ID`.
const TOO_OLD: [(&str, u32); 8] = [
    ("debian", 8),
    ("ubuntu", 15),
    ("centos", 7),
    ("rhel", 7),
    ("ol", 7),
    ("amzn", 2),
    ("fedora", 24),
    ("sles", 12),
];

impl OsRelease {
    /// Whether its systemd does not start where control groups are of version 2 only.
    #[must_use]
    pub fn lacks_cgroup_v2(&self) -> bool {
        let number = self
            .version()
            .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        let last = TOO_OLD.iter().find(|(id, _)| *id == self.id);
        number.zip(last).is_some_and(|(number, (_, last))| number <= *last)
    }

    /// Reads the shell-like assignments of os-release(5). Lines that are none are passed over; the last one wins.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut os = Self {
            id: "linux".to_owned(),
            ..Self::default()
        };
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((key, quoted)) = line.split_once('=') else {
                continue;
            };
            let Ok(words) = shell_words::split(quoted) else {
                continue;
            };
            let value = words.concat();
            match key {
                "ID" if !value.is_empty() => os.id = value,
                "VERSION_ID" => os.version_id = Some(value).filter(|v| !v.is_empty()),
                "VERSION_CODENAME" => os.codename = Some(value).filter(|v| !v.is_empty()),
                "PRETTY_NAME" => os.pretty_name = Some(value).filter(|v| !v.is_empty()),
                _ => {}
            }
        }
        os
    }

    /// What a VERSION column shows: the version, or the code name where there is no version.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version_id.as_deref().or(self.codename.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quotes_comments_and_gaps() {
        let os = OsRelease::parse("# c\nID=debian\nVERSION_ID=\"13\"\nPRETTY_NAME='Debian \"13\"'\nnonsense\nX=\"");
        assert_eq!(
            (os.id.as_str(), os.version(), os.pretty_name.as_deref()),
            ("debian", Some("13"), Some("Debian \"13\""))
        );
        assert_eq!(OsRelease::parse("VERSION_CODENAME=forky").version(), Some("forky"));
        assert_eq!(OsRelease::parse("").id, "linux");
    }
}
