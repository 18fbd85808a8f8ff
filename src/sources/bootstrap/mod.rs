//! Trees made by debootstrap or mmdebstrap out of a mirror's packages.

mod clean;
mod host;
mod options;
mod run;

use std::path::{Path, PathBuf};

pub(crate) use host::check_mount_flags;
pub(super) use host::{arch as host_arch, check_arch};
pub(crate) use run::build;

use super::apt::AptSources;
use super::mirror::{Release, without_password};
use super::{BootstrapOptions, Bootstrapper, Distro, SourceError, mirror};
use crate::sys::process::program_exists;

/// Everything that shapes a bootstrap, with defaults filled in and checked against this host; no network was asked.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) distro: Distro,
    pub(crate) suite: String,
    pub(crate) arch: String,
    pub(crate) variant: String,
    pub(crate) components: Vec<String>,
    /// What the user wants on top, sorted, each once.
    pub(crate) include: Vec<String>,
    /// Without a trailing slash.
    pub(crate) mirror: String,
    /// Whether `mirror` is the distribution's public one.
    pub(crate) public: bool,
    pub(crate) keyring: PathBuf,
    pub(crate) tool: Tool,
    pub(crate) proxy: Option<String>,
    pub(crate) components_given: bool,
}

/// The program that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Debootstrap,
    Mmdebstrap,
}

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debootstrap => "debootstrap",
            Self::Mmdebstrap => "mmdebstrap",
        }
    }

    fn choose(wanted: Bootstrapper) -> Self {
        match wanted {
            Bootstrapper::Mmdebstrap => Self::Mmdebstrap,
            Bootstrapper::Auto if program_exists("mmdebstrap") => Self::Mmdebstrap,
            Bootstrapper::Auto | Bootstrapper::Debootstrap => Self::Debootstrap,
        }
    }
}

impl Recipe {
    /// Checks the options and this host: the program, the keyring, the architecture.
    pub(crate) fn new(distro: Distro, suite: &str, options: &BootstrapOptions) -> Result<Self, SourceError> {
        options::check(options)?;
        let tool = Tool::choose(options.bootstrapper);
        host::check_program(tool)?;
        let arch = match &options.arch {
            Some(arch) => arch.clone(),
            None => host::arch().to_owned(),
        };
        host::check_arch(&arch)?;
        let keyring = host::find_keyring(distro, options.keyring.as_deref())?;
        let public = mirror::default_mirror(distro, &arch);
        let mirror = options
            .mirror
            .as_deref()
            .unwrap_or(public)
            .trim_end_matches('/')
            .to_owned();
        let mut include = options.include.clone();
        include.sort();
        include.dedup();
        Ok(Self {
            distro,
            suite: suite.to_owned(),
            arch,
            variant: options.variant.clone().unwrap_or_else(|| "minbase".to_owned()),
            components: match options.components.as_slice() {
                [] => vec!["main".to_owned()],
                given => given.to_vec(),
            },
            components_given: !options.components.is_empty(),
            include,
            public: mirror == public,
            mirror,
            keyring,
            tool,
            proxy: options.proxy.clone(),
        })
    }

    /// In a few words, for messages and the list of cached trees.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{}:{} {} {}", self.distro, self.suite, self.arch, self.variant);
        if !self.include.is_empty() {
            text.push_str(" +");
            text.push_str(&self.include.join(",+"));
        }
        if !self.public {
            text.push_str(" from ");
            text.push_str(&without_password(&self.mirror));
        }
        text
    }

    /// The packages to install on top of the variant: what makes a guest that boots, has network and can be logged into,
    /// and the user's. Sorted.
    pub(crate) fn packages(&self, release: &Release) -> Vec<String> {
        let mut all: Vec<String> = [
            "apt",
            "systemd-sysv",
            "dbus",
            "libpam-systemd",
            "login",
            "iproute2",
            "netbase",
        ]
        .map(str::to_owned)
        .into();
        if resolved_is_a_package(self.distro, release.version.as_deref()) {
            all.push("systemd-resolved".to_owned());
        }
        if self.mirror.starts_with("https:") {
            all.push("ca-certificates".to_owned());
        }
        all.extend(self.include.iter().cloned());
        all.sort();
        all.dedup();
        all
    }

    /// The components in the guest's own apt sources.
    pub(crate) fn guest_components(&self) -> Vec<String> {
        let mut components = self.components.clone();
        if self.distro == Distro::Ubuntu && !self.components_given {
            // Most of what an Ubuntu user installs; bootstrapping from it as well would only take longer.
            components.push("universe".to_owned());
        }
        components
    }

    /// The guest's own apt sources.
    pub(crate) fn apt_sources(&self, release: &Release) -> AptSources {
        AptSources {
            distro: self.distro,
            mirror: self.mirror.clone(),
            suite: self.suite.clone(),
            components: self.guest_components(),
            // Rolling suites have no version and no updates beside them; another mirror may not have them.
            updates: self.public && release.version.is_some(),
            keyring: self.keyring.clone(),
        }
    }

    /// The steps in words, for `--dry-run`.
    pub(crate) fn plan(&self, cache: &Path, cached: bool) -> Vec<String> {
        let suite = format!("{}/dists/{}", without_password(&self.mirror), self.suite);
        let mut steps = vec![format!("fetch '{suite}/InRelease'")];
        let command = run::command(
            self,
            &self.packages(&Release::unknown()),
            &cache.join("…"),
            &self.keyring,
        );
        let build = format!("run `{}` if no cached tree matches", command.shown());
        if cached {
            steps.push(build);
            steps.push("copy the cached tree".to_owned());
        } else {
            steps.push(build.replace(" if no cached tree matches", ""));
        }
        steps
    }
}

/// Debian 12 and Ubuntu 23.04 took systemd-resolved out of the package systemd; rolling suites are newer.
fn resolved_is_a_package(distro: Distro, version: Option<&str>) -> bool {
    let Some(version) = version else { return true };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let major = numbers.next().unwrap_or(0);
    let minor = numbers.next().unwrap_or(0);
    match distro {
        Distro::Debian => major >= 12,
        Distro::Ubuntu => (major, minor) >= (23, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_is_included_where_it_is_a_package() {
        assert!(resolved_is_a_package(Distro::Debian, Some("13.1")));
        assert!(resolved_is_a_package(Distro::Debian, None));
        assert!(!resolved_is_a_package(Distro::Debian, Some("11.11")));
        assert!(resolved_is_a_package(Distro::Ubuntu, Some("24.04")));
        assert!(!resolved_is_a_package(Distro::Ubuntu, Some("22.04")));
        assert!(resolved_is_a_package(Distro::Ubuntu, Some("23.10")));
    }
}
