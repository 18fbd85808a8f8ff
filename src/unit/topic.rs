//! The drop-ins: one file for each topic, so that each can be read, and removed, on its own.

use crate::machine::MachineName;

/// What a drop-in is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Whether its console can be typed into.
    Console,
    /// Which devices the machine may use.
    Device,
    /// Description and labels.
    Label,
    /// Which machines it starts after, its groups, its delay.
    Order,
    /// Which machines start before it by their priority.
    Priority,
    /// Whether it may be removed.
    Protect,
    /// Whether it is started again when it ends.
    Restart,
    /// Credentials that systemd-nspawn hands on to it.
    Secret,
    /// What is done before and after its start, and where in the tree of slices it runs.
    Start,
    /// What is done when it stops.
    Stop,
}

impl Topic {
    /// All of them, in the order of their files.
    pub const ALL: [Self; 10] = [
        Self::Console,
        Self::Device,
        Self::Label,
        Self::Order,
        Self::Priority,
        Self::Protect,
        Self::Restart,
        Self::Secret,
        Self::Start,
        Self::Stop,
    ];

    /// One word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Device => "device",
            Self::Label => "label",
            Self::Order => "order",
            Self::Priority => "priority",
            Self::Protect => "protect",
            Self::Restart => "restart",
            Self::Secret => "secret",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }

    /// The topic with that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.word() == word)
    }

    /// The file's name in `systemd-nspawn@NAME.service.d`.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("50-machinist-{}.conf", self.word())
    }

    /// How a new file begins.
    #[must_use]
    pub fn head(self, name: &MachineName) -> String {
        let what = match self {
            Self::Console => {
                "The console of machine '{}' is a terminal, which machinist-console@{}.service keeps: `machinist console {}`.\n\
                 # Without that unit the machine does not start: take this back before you remove machinist. systemd.exec(5)"
            }
            Self::Device => {
                "Devices that machine '{}' may use: `machinist device list {}`.\n\
                 # Each is mounted by Bind= in the machine's .nspawn file, too. systemd.resource-control(5)"
            }
            Self::Label => "Description and labels of machine '{}': `machinist label {}`. systemd.unit(5)",
            Self::Order => "When machine '{}' starts: `machinist order {}`. systemd.unit(5)",
            Self::Priority => {
                "Machines that start before '{}' by their priority: `machinist order {}`.\n\
                 # Written anew when the priority of one of them changes. systemd.unit(5)"
            }
            Self::Protect => "Whether machine '{}' may be removed: `machinist protect {} on`.",
            Self::Restart => {
                "Whether machine '{}' is started again when it ends: `machinist config get {} restart`.\n# systemd.service(5)"
            }
            Self::Secret => {
                "Secrets of machine '{}': `machinist secret list {}`. systemd.exec(5), systemd-nspawn(1)\n\
                 # ExecStart= is CommandLine= with a --load-credential= for each: `machinist config check {}` says when the unit\n\
                 # has another one by now, and `machinist secret set {} --refresh` takes that."
            }
            Self::Start => "The start of machine '{}': `machinist config set {} before-start=…`. systemd.service(5)",
            Self::Stop => "The stop of machine '{}': `machinist config set {} after-stop=…`. systemd.service(5)",
        };
        format!("# {}\n", what.replace("{}", name.as_str()))
    }

    /// Whether it counts for a running machine, too, as soon as systemd has read it.
    #[must_use]
    pub fn holds_at_once(self) -> bool {
        !matches!(
            self,
            Self::Console | Self::Order | Self::Priority | Self::Secret | Self::Start
        )
    }
}
