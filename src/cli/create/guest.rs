//! The options that say what the guest is to be.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{assignment, network};
use crate::cli::error::{CliError, Kind, chain};
use crate::machine::MachineName;
use crate::nspawn::assignment::Assignment;
use crate::ops::OpError;
use crate::ops::create::script::Script;
use crate::ops::create::{FileCopy, Network};
use crate::sources::guest::{AuthorizedKeys, GuestOptions, Locale, Seed, Timezone, UnitName, UserName};
use crate::sources::password::{PasswordError, PasswordHash};

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Guest")]
pub(super) struct GuestArgs {
    /// Its host name, if not the machine's name
    #[arg(long, value_name = "HOSTNAME", value_parser = hostname)]
    hostname: Option<String>,
    /// Root's password is the first line of this file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    root_password_file: Option<PathBuf>,
    /// Who has one of these ssh keys may log in as root, and as the --user
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Make a user without a password, who may become root where the guest has a group sudo or wheel
    #[arg(long, value_name = "USER")]
    user: Option<UserName>,
    /// veth, host, none, bridge=NAME or zone=NAME [default: veth]
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    pub(super) network: Option<Network>,
    /// Whom it asks for names, instead of whom its network tells; may be given again
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Its time zone, if not the host's, such as Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    timezone: Option<Timezone>,
    /// Its language, such as C.UTF-8
    #[arg(long, value_name = "LOCALE")]
    locale: Option<Locale>,
    /// A unit of its own that does not start at boot; may be given again
    #[arg(long, value_name = "UNIT")]
    disable_unit: Vec<UnitName>,
    /// A unit of its own that nothing starts; may be given again
    #[arg(long, value_name = "UNIT")]
    mask_unit: Vec<UnitName>,
    /// Give its cloud-init the files user-data, meta-data, vendor-data and network-config of this directory
    #[arg(long, value_name = "DIR")]
    cloud_init: Option<PathBuf>,
    /// Copy a file or directory of the host into it, for its root; may be given again
    #[arg(long, value_name = "SRC:DST")]
    pub(super) copy: Vec<FileCopy>,
    /// Run a script in it, as its root, before it is there for others; may be given again
    #[arg(long, value_name = "SCRIPT")]
    run: Vec<PathBuf>,
    /// Let these scripts use the host's network; they have none otherwise
    #[arg(long, requires = "run")]
    pub(super) run_network: bool,
    /// Keep machine ID, host name, ssh host keys and leases of what it is made from
    #[arg(long)]
    keep_identity: bool,
    /// A setting for its .nspawn file, see systemd.nspawn(5); may be given again
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    pub(super) set: Vec<Assignment>,
}

impl GuestArgs {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let all = [
            ("--hostname", self.hostname.is_some()),
            ("--root-password-file", self.root_password_file.is_some()),
            ("--ssh-key", self.ssh_key.is_some()),
            ("--user", self.user.is_some()),
            ("--network", self.network.is_some()),
            ("--dns", !self.dns.is_empty()),
            ("--timezone", self.timezone.is_some()),
            ("--locale", self.locale.is_some()),
            ("--disable-unit", !self.disable_unit.is_empty()),
            ("--mask-unit", !self.mask_unit.is_empty()),
            ("--cloud-init", self.cloud_init.is_some()),
            ("--copy", !self.copy.is_empty()),
            ("--run", !self.run.is_empty()),
            ("--keep-identity", self.keep_identity),
            ("--set", !self.set.is_empty()),
        ];
        all.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    pub(super) fn password_is_from_stdin(&self) -> bool {
        self.root_password_file.as_deref() == Some(Path::new("-"))
    }

    /// The scripts, read.
    pub(super) fn scripts(&self) -> Result<Vec<Script>, OpError> {
        self.run.iter().map(|path| Script::read(path)).collect()
    }

    /// What they mean, with the files that they name. Blocks, for as long as those take.
    pub(super) fn read(self) -> Result<GuestOptions, CliError> {
        Ok(GuestOptions {
            root_password_hash: self.root_password_file.as_deref().map(password).transpose()?,
            ssh_key: self.ssh_key.as_deref().map(ssh_key).transpose()?,
            cloud_init: self
                .cloud_init
                .as_deref()
                .map(Seed::read)
                .transpose()
                .map_err(OpError::from)?,
            hostname: self.hostname,
            keep_identity: self.keep_identity,
            user: self.user,
            timezone: self.timezone,
            locale: self.locale,
            dns: self.dns,
            disabled_units: self.disable_unit,
            masked_units: self.mask_unit,
            application: false,
        })
    }
}

fn hostname(text: &str) -> Result<String, String> {
    let name = text.parse::<MachineName>().map_err(|error| error.to_string());
    name.map(|_| text.to_owned())
        .map_err(|error| error.replace("machine name", "host name"))
}

fn password(file: &Path) -> Result<PasswordHash, CliError> {
    let shown = file.display().to_string();
    let hash = if shown == "-" {
        PasswordHash::read(&mut std::io::stdin().lock(), "standard input")
    } else {
        let mut opened = std::fs::File::open(file).map_err(|error| cannot_read(file, &error))?;
        PasswordHash::read(&mut opened, &shown)
    };
    hash.map_err(|error: PasswordError| {
        let hints = error.hints();
        CliError {
            hints,
            ..CliError::new(Kind::Failed, error.to_string()).causes(chain(&error))
        }
    })
}

fn ssh_key(file: &Path) -> Result<AuthorizedKeys, CliError> {
    let text = std::fs::read_to_string(file).map_err(|error| cannot_read(file, &error))?;
    Ok(AuthorizedKeys::parse(&text, &file.display().to_string()).map_err(OpError::from)?)
}

fn cannot_read(file: &Path, error: &std::io::Error) -> CliError {
    CliError::new(Kind::Failed, format!("cannot read '{}'", file.display())).causes([error.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_cannot_be_read_has_a_cause() {
        let error = password(Path::new("/etc")).unwrap_err();
        assert_eq!(error.message, "cannot read the root password from '/etc'");
        assert_eq!(error.causes, ["Is a directory (os error 21)"]);
    }
}
