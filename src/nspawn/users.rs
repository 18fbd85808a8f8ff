//! Ranges of user and group numbers on the host: `PrivateUsers=FIRST:COUNT` of systemd.nspawn(5), and who has others.

use super::names::boolean;
use super::number::integer_in;

/// The numbers that systemd sets aside for containers: 524288 to 1879048191, see "UIDs and GIDs" of its documentation.
const FOR_CONTAINERS: (u32, u32) = (0x8_0000, 0x6FFF_FFFF);

/// Numbers of users, and of groups, on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserRange {
    /// The first.
    pub first: u32,
    /// How many, at least 1. The last is below 4294967295.
    pub count: u32,
}

impl UserRange {
    /// How many numbers a machine has unless it is said.
    pub const USUAL_COUNT: u32 = 0x1_0000;

    /// A range; `None` if it has no numbers, or some that Linux does not have.
    #[must_use]
    pub fn new(first: u32, count: u32) -> Option<Self> {
        (count > 0 && first.checked_add(count).is_some()).then_some(Self { first, count })
    }

    /// Reads `FIRST[:COUNT]` as `PrivateUsers=` has it.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let (first, count) = match value.split_once(':') {
            Some((first, count)) => (first, integer_in(count, 1, i128::from(u32::MAX))?.try_into().ok()?),
            None => (value, UserRange::USUAL_COUNT),
        };
        let plain = first.bytes().all(|b| b.is_ascii_digit()) && (first == "0" || !first.starts_with('0'));
        let first = first
            .parse()
            .ok()
            .filter(|&uid| plain && uid != u32::MAX && uid != 0xFFFF)?;
        Self::new(first, count)
    }

    /// The range that systemd-nspawn gave a tree whose root this user owns; `None` if it is the host's own.
    #[must_use]
    pub fn of_owner(uid: u32) -> Option<Self> {
        let first = uid & !(UserRange::USUAL_COUNT - 1);
        (FOR_CONTAINERS.0..=FOR_CONTAINERS.1).contains(&first).then_some(Self {
            first,
            count: UserRange::USUAL_COUNT,
        })
    }

    /// The last number of it.
    #[must_use]
    pub fn last(self) -> u32 {
        self.first + (self.count - 1)
    }

    /// Whether both have a number in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }

    /// The lowest range for containers of that size that is nobody's, by steps of 65536.
    #[must_use]
    pub fn free(count: u32, taken: &[Taken]) -> Option<Self> {
        let mut first = FOR_CONTAINERS.0;
        loop {
            let range = Self::new(first, count).filter(|range| range.last() <= FOR_CONTAINERS.1)?;
            let Some(end) = taken
                .iter()
                .filter(|taken| taken.range.overlaps(range))
                .map(|taken| taken.range.last())
                .max()
            else {
                return Some(range);
            };
            first = end.checked_add(1)?.checked_next_multiple_of(UserRange::USUAL_COUNT)?;
        }
    }
}

/// `FIRST:COUNT`, as `PrivateUsers=` takes it.
impl std::fmt::Display for UserRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.first, self.count)
    }
}

/// What systemd-nspawn is told about private users, and whose the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateUsers {
    /// None; the files belong to whom they belong.
    No,
    /// Those, to whom the files are mapped or given.
    Mapped(UserRange),
    /// Those; the files belong to whom they belong.
    Plain(UserRange),
    /// Any free ones, to whom the files are mapped or given.
    Pick,
    /// What only systemd-nspawn knows, such as whose the files are.
    Other,
}

impl PrivateUsers {
    /// What switches of systemd-nspawn(1) say.
    #[must_use]
    pub fn of_switches<S: AsRef<str>>(switches: &[S]) -> Self {
        let (mut users, mut ownership) = ("no", "auto");
        for switch in switches.iter().map(AsRef::as_ref) {
            match switch.split_once('=') {
                None if switch == "-U" => (users, ownership) = ("pick", "auto"),
                Some(("--private-users", value)) => users = value,
                Some(("--private-users-ownership", value)) => ownership = value,
                Some(("--private-users-delegate", _)) => return Self::Other,
                _ => {}
            }
        }
        let is_mapped = ["auto", "map", "chown"].contains(&ownership);
        match users {
            "identity" if is_mapped => UserRange::new(0, UserRange::USUAL_COUNT).map_or(Self::Other, Self::Mapped),
            "pick" if is_mapped => Self::Pick,
            users if boolean(users) == Some(false) => Self::No,
            users => match UserRange::parse(users) {
                Some(range) if is_mapped => Self::Mapped(range),
                Some(range) if ownership == "off" => Self::Plain(range),
                _ => Self::Other,
            },
        }
    }

    /// The switches that give a machine these users, and leave the files as they are.
    #[must_use]
    pub fn switches_for(range: UserRange) -> [String; 2] {
        [
            format!("--private-users={range}"),
            "--private-users-ownership=off".to_owned(),
        ]
    }

    /// Whether a switch is about them.
    #[must_use]
    pub fn is_switch(switch: &str) -> bool {
        switch == "-U" || switch.starts_with("--private-users")
    }
}

/// Numbers that are somebody's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taken {
    /// Which.
    pub range: UserRange,
    /// Whose, and where it says so: "machine 'db' (/etc/systemd/nspawn/db.nspawn:2)".
    pub by: String,
}

/// Lines of a file about users: name, numbers, and which line, from 1. Those that say nothing are left out.
pub type Entries<'a> = Vec<(&'a str, UserRange, usize)>;

/// What subuid(5) and subgid(5) give to users.
#[must_use]
pub fn subordinate(text: &str) -> Entries<'_> {
    let entries = text.lines().enumerate().filter_map(|(at, line)| {
        let mut fields = line.split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let range = UserRange::new(first.trim().parse().ok()?, count.trim().parse().ok()?)?;
        Some((owner, range, at + 1))
    });
    entries.collect()
}

/// The users of passwd(5), or the groups of group(5), each with its one number.
#[must_use]
pub fn accounts(text: &str) -> Entries<'_> {
    let entries = text.lines().enumerate().filter_map(|(at, line)| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        let range = UserRange::new(number.parse().ok()?, 1)?;
        Some((name, range, at + 1))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> UserRange {
        UserRange::parse(text).unwrap()
    }

    #[test]
    fn ranges_meet_at_their_ends() {
        assert_eq!(range("524288"), range("524288:65536"));
        assert_eq!(range("524288").last(), 589_823);
        assert!(range("524288").overlaps(range("589823:1")));
        assert!(!range("524288").overlaps(range("589824:1")));
        assert!(range("0:4294967295").overlaps(range("4294967294:1")));
        for bad in [
            "",
            "x",
            "01",
            "1:0",
            "65535",
            "4294967295",
            "4294967290:6",
            "-1",
            "1:2:3",
        ] {
            assert_eq!(UserRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn trees_of_machines_are_known_by_their_owner() {
        assert_eq!(UserRange::of_owner(0), None);
        assert_eq!(UserRange::of_owner(65_534), None);
        assert_eq!(UserRange::of_owner(1_000_000), Some(range("983040:65536")));
    }

    #[test]
    fn a_free_range_is_nobodys() {
        let taken = |text: &str| Taken {
            range: range(text),
            by: String::new(),
        };
        assert_eq!(UserRange::free(65_536, &[]), Some(range("524288:65536")));
        let all = [taken("600000:10"), taken("524288:1"), taken("100000:65536")];
        assert_eq!(UserRange::free(65_536, &all), Some(range("655360:65536")));
        assert_eq!(UserRange::free(1, &[taken("0:4294967294")]), None);
        assert_eq!(UserRange::free(u32::MAX, &[]), None);
    }

    #[test]
    fn the_last_switch_says_which_users() {
        let says = |switches: &[&str]| PrivateUsers::of_switches(switches);
        assert_eq!(says(&["--quiet", "--network-veth"]), PrivateUsers::No);
        assert_eq!(says(&["-U", "--network-veth"]), PrivateUsers::Pick);
        assert_eq!(says(&["-U", "--private-users=no"]), PrivateUsers::No);
        assert_eq!(says(&["--private-users-ownership=chown"]), PrivateUsers::No);
        assert_eq!(
            says(&["--private-users=pick", "--private-users-ownership=map"]),
            PrivateUsers::Pick
        );
        let given = "--private-users=655360:1000";
        assert_eq!(says(&[given]), PrivateUsers::Mapped(range("655360:1000")));
        assert_eq!(
            says(&[given, "--private-users-ownership=off"]),
            PrivateUsers::Plain(range("655360:1000"))
        );
        assert_eq!(
            says(&["--private-users=identity"]),
            PrivateUsers::Mapped(range("0:65536"))
        );
        for other in [
            &["--private-users=yes"] as &[&str],
            &["--private-users=managed"],
            &["-U", "--private-users-ownership=off"],
            &[given, "--private-users-ownership=foreign"],
            &["-U", "--private-users-delegate=1"],
        ] {
            assert_eq!(says(other), PrivateUsers::Other, "{other:?}");
        }
    }

    #[test]
    fn the_hosts_files_are_read_as_they_come() {
        let text = "me:100000:65536\n# no\n:1\nbig:4294967295:2\n1001:165536:65536\n";
        assert_eq!(
            subordinate(text),
            [("me", range("100000:65536"), 1), ("1001", range("165536:65536"), 5)]
        );
        let found = accounts("root:x:0:0::/root:/bin/sh\n+::::::\nme:x:1000:1000::/:/bin/sh");
        assert_eq!(found, [("root", range("0:1"), 1), ("me", range("1000:1"), 3)]);
    }
}
