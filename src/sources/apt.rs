//! The apt sources of a new guest.

use std::path::Path;

use super::Distro;
use crate::sys::files::{FileError, Root};

/// Debian's updates that cannot wait; beside the public mirror.
const DEBIAN_SECURITY: &str = "http://deb.debian.org/debian-security";
/// The largest keyring handed on to a guest, in bytes.
const KEYRING_MAX: u64 = 4 << 20;

/// Where a guest gets its packages from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AptSources {
    /// The distribution.
    pub distro: Distro,
    /// The mirror's URL.
    pub mirror: String,
    /// The suite as the user named it.
    pub suite: String,
    /// Components, `main` first.
    pub components: Vec<String>,
    /// Adds the suites of updates and security fixes as the distribution's public mirrors have them.
    pub updates: bool,
    /// The keyring, a path that is the same on the host and in the guest, or that only the host has: it is copied then.
    pub keyring: std::path::PathBuf,
}

/// Writes the sources into a tree, in deb822 form where the guest has the keyring (or gets it), else in one-line form. A
/// `sources.list` that the bootstrapper left is removed.
pub fn write(root: &Root, sources: &AptSources) -> Result<(), FileError> {
    root.create_dir_all("etc/apt/sources.list.d", 0o755)?;
    let signed_by = place_keyring(root, &sources.keyring)?;
    let name = format!("etc/apt/sources.list.d/{}.sources", sources.distro);
    root.write(name, deb822(sources, signed_by.as_deref()).as_bytes(), 0o644)?;
    match root.remove_file("etc/apt/sources.list") {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// The guest's path of the keyring. The guest's own copy is preferred, since its updates renew it; another keyring is copied.
fn place_keyring(root: &Root, keyring: &Path) -> Result<Option<String>, FileError> {
    let host = std::fs::read(keyring).unwrap_or_default();
    let path = keyring.to_string_lossy().into_owned();
    let packaged = path.starts_with("/usr/share/keyrings/");
    if packaged && root.resolve(&path).is_ok() {
        return Ok(Some(path));
    }
    if host.is_empty() || host.len() as u64 > KEYRING_MAX {
        return Ok(None);
    }
    let ending = if host.starts_with(b"-----BEGIN") { "asc" } else { "gpg" };
    let path = format!("/etc/apt/keyrings/mirror.{ending}");
    root.create_dir_all("etc/apt/keyrings", 0o755)?;
    root.write(&path, &host, 0o644)?;
    Ok(Some(path))
}

fn deb822(sources: &AptSources, signed_by: Option<&str>) -> String {
    let AptSources { mirror, suite, .. } = sources;
    let mut stanzas = Vec::new();
    match (sources.updates, sources.distro) {
        (false, _) => stanzas.push((mirror.as_str(), suite.clone())),
        (true, Distro::Debian) => {
            stanzas.push((mirror.as_str(), format!("{suite} {suite}-updates")));
            stanzas.push((DEBIAN_SECURITY, format!("{suite}-security")));
        }
        (true, Distro::Ubuntu) => {
            stanzas.push((mirror.as_str(), format!("{suite} {suite}-updates {suite}-security")));
        }
    }
    let components = sources.components.join(" ");
    let signed_by = signed_by.map(|path| format!("Signed-By: {path}\n")).unwrap_or_default();
    let stanzas: Vec<String> = stanzas
        .iter()
        .map(|(uri, suites)| {
            format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {components}\n{signed_by}")
        })
        .collect();
    stanzas.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_comes_with_the_public_mirror_only() {
        let dir = tempfile::tempdir().unwrap();
        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), "keys").unwrap();
        std::fs::create_dir_all(dir.path().join("etc/apt")).unwrap();
        std::fs::write(dir.path().join("etc/apt/sources.list"), "deb x y z\n").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut sources = AptSources {
            distro: Distro::Debian,
            mirror: "http://deb.debian.org/debian".to_owned(),
            suite: "trixie".to_owned(),
            components: vec!["main".to_owned(), "contrib".to_owned()],
            updates: true,
            keyring: keys.path().to_owned(),
        };
        write(&root, &sources).unwrap();
        let text = std::fs::read_to_string(dir.path().join("etc/apt/sources.list.d/debian.sources")).unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie trixie-updates\nComponents: main contrib\n\
             Signed-By: /etc/apt/keyrings/mirror.gpg\n\n\
             Types: deb\nURIs: http://deb.debian.org/debian-security\nSuites: trixie-security\nComponents: main contrib\n\
             Signed-By: /etc/apt/keyrings/mirror.gpg\n"
        );
        assert_eq!(
            std::fs::read(dir.path().join("etc/apt/keyrings/mirror.gpg")).unwrap(),
            b"keys"
        );
        assert!(!dir.path().join("etc/apt/sources.list").exists());
        sources.updates = false;
        sources.keyring = "/nowhere".into();
        write(&root, &sources).unwrap();
        let text = std::fs::read_to_string(dir.path().join("etc/apt/sources.list.d/debian.sources")).unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie\nComponents: main contrib\n"
        );
    }
}
