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

impl OsRelease {
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
