//! The options that are settings and limits of one run.

use std::time::Duration;

use crate::cli::create::network;
use crate::limit;
use crate::nspawn::assignment::{Assignment, parse_assignment};
use crate::nspawn::edit::Edit;
use crate::nspawn::schema::KEYS;
use crate::ops::create::Network;

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings of this run")]
pub(super) struct SettingArgs {
    /// How much memory it may use, such as 512M
    #[arg(long, value_name = "BYTES", value_parser = limit_of("memory"))]
    memory: Option<limit::Assignment>,
    /// How many CPUs, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = limit_of("cpus"))]
    cpus: Option<limit::Assignment>,
    /// How many processes and threads
    #[arg(long, value_name = "NUMBER", value_parser = limit_of("tasks"))]
    tasks: Option<limit::Assignment>,
    /// Stop it after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = crate::cli::seconds)]
    pub(super) timeout: Option<Duration>,
    /// Mount a file or directory of the host: SOURCE[:PLACE[:OPTIONS]]
    #[arg(long, value_name = "SOURCE:PLACE", value_parser = setting_of("Files.Bind"))]
    bind: Vec<Assignment>,
    /// Mount an empty directory in memory
    #[arg(long, value_name = "PLACE", value_parser = setting_of("Files.TemporaryFileSystem"))]
    tmpfs: Vec<Assignment>,
    /// Forward a port of the host: [tcp:|udp:]HOST[:MACHINE]
    #[arg(long, value_name = "PORT", value_parser = setting_of("Network.Port"))]
    port: Vec<Assignment>,
    /// veth, host, none, bridge=NAME or zone=NAME
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    pub(super) network: Option<Network>,
    /// Mount the image read-only
    #[arg(long)]
    read_only: bool,
    /// Give it a capability, such as CAP_SYS_TIME
    #[arg(long, value_name = "CAP", value_parser = setting_of("Exec.Capability"))]
    cap_add: Vec<Assignment>,
    /// Take a capability from it
    #[arg(long, value_name = "CAP", value_parser = setting_of("Exec.DropCapability"))]
    cap_drop: Vec<Assignment>,
    /// Its processes cannot get new privileges, as by setuid programs
    #[arg(long)]
    no_new_privs: bool,
    /// Its users: pick, no, or FIRST:COUNT of the host
    #[arg(long, value_name = "USERS", value_parser = setting_of("Exec.PrivateUsers"))]
    private_users: Option<Assignment>,
    /// Any setting, see systemd.nspawn(5); may be given again
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    set: Vec<Assignment>,
}

fn limit_of(key: &'static str) -> impl Fn(&str) -> Result<limit::Assignment, String> + Clone {
    move |value| limit::parse(&format!("{key}={value}")).map_err(|error| error.to_string())
}

fn setting_of(key: &'static str) -> impl Fn(&str) -> Result<Assignment, String> + Clone {
    move |value| assignment(&format!("{key}={value}"))
}

fn assignment(text: &str) -> Result<Assignment, String> {
    parse_assignment(text).map_err(|error| error.to_string())
}

impl SettingArgs {
    /// What they change in the machine's settings, and its limits.
    pub(super) fn into_changes(self) -> (Vec<Edit>, Vec<limit::Assignment>) {
        let set = |section: &str, key: &str, value: &str| Edit::Set {
            section: section.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let mut edits = Vec::new();
        if let Some(network) = &self.network {
            // They act as one group: what the machine has of them goes.
            let keys = KEYS.iter().filter(|key| key.section == "Network" && key.name != "Port");
            edits.extend(keys.map(|key| Edit::Reset {
                section: key.section.to_owned(),
                key: key.name.to_owned(),
            }));
            let settings = network.settings();
            edits.extend(settings.iter().map(|(key, value)| set("Network", key, value)));
        }
        if let Some(users) = &self.private_users {
            edits.push(set("Exec", "PrivateUsers", &users.value));
            edits.push(set("Files", "PrivateUsersOwnership", "auto"));
        }
        edits.extend(self.read_only.then(|| set("Files", "ReadOnly", "yes")));
        edits.extend(self.no_new_privs.then(|| set("Exec", "NoNewPrivileges", "yes")));
        // What is not to be had cannot be given back otherwise.
        edits.extend(self.cap_add.iter().map(|cap| Edit::Remove {
            section: "Exec".to_owned(),
            key: "DropCapability".to_owned(),
            value: Some(cap.value.clone()),
        }));
        let lists = [self.bind, self.tmpfs, self.port, self.cap_add, self.cap_drop];
        edits.extend(lists.into_iter().flatten().chain(self.set).map(Assignment::into_edit));
        let limits = [self.memory, self.cpus, self.tasks];
        (edits, limits.into_iter().flatten().collect())
    }
}
