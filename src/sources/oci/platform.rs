//! What machines an image is for, and which of several is for this one.

use std::env::consts::ARCH;

use serde::Deserialize;

use super::manifest::Descriptor;
use crate::sources::source::shown;

/// Architectures by the names of Rust, of Debian, and of Go, which are those of images.
const NAMES: [(&str, &str, &str, Option<&str>); 10] = [
    ("x86_64", "amd64", "amd64", None),
    ("x86", "i386", "386", None),
    ("aarch64", "arm64", "arm64", Some("v8")),
    ("arm", "armhf", "arm", Some("v7")),
    ("", "armel", "arm", Some("v5")),
    ("powerpc64", "ppc64el", "ppc64le", None),
    ("riscv64", "riscv64", "riscv64", None),
    ("s390x", "s390x", "s390x", None),
    ("loongarch64", "loong64", "loong64", None),
    ("mips64", "mips64el", "mips64le", None),
];

/// The architecture and its variant as images have them, by Debian's name; those of this host if that is unknown.
pub(crate) fn architecture(debian: Option<&str>) -> (&'static str, Option<&'static str>) {
    let known = NAMES.iter().find(|names| Some(names.1) == debian);
    let known = known.or_else(|| NAMES.iter().find(|names| names.0 == ARCH));
    known.map_or((ARCH, None), |names| (names.2, names.3))
}

/// What an image is for, as an index says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
}

impl Platform {
    /// `linux/arm/v7`
    pub(super) fn shown(&self) -> String {
        let variant = self.variant.iter().map(|variant| format!("/{variant}"));
        shown(&format!(
            "{}/{}{}",
            self.os,
            self.architecture,
            variant.collect::<String>()
        ))
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) platform: Platform,
    /// Whether the user said so: then nothing else is taken.
    pub(super) is_said: bool,
}

impl Wanted {
    /// By the name of an architecture as Debian has it, or as images have it (`arm/v7`); that of this host if `None`.
    pub(super) fn new(said: Option<&str>) -> Self {
        let known = match said {
            None => NAMES.iter().find(|names| names.0 == ARCH),
            Some(said) => NAMES.iter().find(|names| names.1 == said || names.2 == said),
        };
        let (architecture, variant) = match (known, said) {
            (Some(names), _) => (names.2, names.3),
            (None, Some(said)) => said
                .split_once('/')
                .map_or((said, None), |(arch, variant)| (arch, Some(variant))),
            (None, None) => (ARCH, None),
        };
        Self {
            platform: Platform {
                os: "linux".to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            },
            is_said: said.is_some(),
        }
    }

    /// How well it fits, the best least; `None` if it does not run there.
    fn rank(&self, offered: &Platform) -> Option<u8> {
        let ours = &self.platform;
        if (offered.os.as_str(), &offered.architecture) != ("linux", &ours.architecture) {
            return None;
        }
        let number = |variant: &Option<String>| {
            let variant = variant.as_deref()?;
            variant.strip_prefix('v')?.parse::<u8>().ok()
        };
        match (&offered.variant, number(&offered.variant), number(&ours.variant)) {
            (theirs, ..) if *theirs == ours.variant => Some(0),
            (None, ..) => Some(1),
            // Older ones run on newer ones; of amd64 they begin with v1.
            (_, Some(theirs), Some(most)) if theirs <= most => Some(2 + (most - theirs)),
            (_, Some(1), None) => Some(2),
            _ => None,
        }
    }

    pub(super) fn fits(&self, offered: &Platform) -> bool {
        self.rank(offered).is_some()
    }

    /// The best of those that say what they are for.
    pub(super) fn best<'a>(&self, offered: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let ranked = offered
            .iter()
            .filter_map(|one| Some((self.rank(one.platform.as_ref()?)?, one)));
        // The first of those that are as good.
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, one)| one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(all: &[&str]) -> Vec<Descriptor> {
        let one = |text: &&str| {
            let mut parts = text.split('/');
            let mut part = || parts.next().map(str::to_owned);
            Descriptor {
                digest: (*text).to_owned(),
                platform: Some(Platform {
                    os: part().unwrap(),
                    architecture: part().unwrap(),
                    variant: part(),
                }),
                ..Descriptor::default()
            }
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn the_best_of_several_is_chosen() {
        let best = |said: &str, all: &[&str]| {
            let all = offered(all);
            Wanted::new(Some(said)).best(&all).map(|one| one.digest.clone())
        };
        let all = [
            "unknown/unknown",
            "windows/amd64",
            "linux/386",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/amd64",
        ];
        for (said, wanted) in [
            ("amd64", "linux/amd64"),
            ("armhf", "linux/arm/v7"),
            ("armel", "linux/arm/v5"),
            ("arm/v6", "linux/arm/v5"),
            ("arm64", "linux/arm64/v8"),
            ("i386", "linux/386"),
        ] {
            assert_eq!(best(said, &all).as_deref(), Some(wanted), "{said}");
        }
        assert_eq!(best("s390x", &all), None);
        assert_eq!(
            best("amd64", &["linux/amd64/v3", "linux/amd64/v1"]).as_deref(),
            Some("linux/amd64/v1")
        );
        assert_eq!(best("amd64", &["linux/amd64/v3"]), None);
        assert_eq!(best("arm64", &["linux/arm64"]).as_deref(), Some("linux/arm64"));
        assert_eq!(Wanted::new(None).platform.os, "linux");
    }
}
