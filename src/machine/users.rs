//! Users and groups of a guest, from the text of its own passwd(5) and group(5). The text is hostile.

/// A user as a process is started for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name; the number, where the guest knows no such user.
    pub name: String,
    /// User id within the guest.
    pub uid: u32,
    /// Primary group id within the guest.
    pub gid: u32,
    /// The groups that group(5) adds, without the primary one.
    pub groups: Vec<u32>,
    /// Home directory, an absolute path.
    pub home: String,
    /// Login shell, an absolute path.
    pub shell: String,
}

/// Why a user or group was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// passwd(5) has no such user.
    #[error("there is no user '{0}' in the machine")]
    NoUser(String),
    /// group(5) has no such group.
    #[error("there is no group '{0}' in the machine")]
    NoGroup(String),
}

/// `(uid_t) -1` and its 16-bit form mean "no change" to some system calls, and are nobody's.
const NOBODYS: [u32; 2] = [u32::MAX, 0xffff];
/// Linux takes no more (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65536;

fn number(text: &str) -> Option<u32> {
    // No sign, no blank: what parse(3) would accept beside digits is no id.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && !NOBODYS.contains(id))
}

fn absolute(text: &str, otherwise: &str) -> String {
    if text.starts_with('/') { text } else { otherwise }.to_owned()
}

/// Finds a user, by name or number, and optionally another primary group. An unknown number is a user without a home;
/// root needs no entry.
pub fn find_user(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> Result<User, UserError> {
    let mut found = find_entry(user, passwd, groups)?;
    if let Some(group) = group {
        found.gid = find_group(group, groups)?;
    }
    found.groups.retain(|gid| *gid != found.gid);
    Ok(found)
}

fn find_entry(user: &str, passwd: &str, groups: &str) -> Result<User, UserError> {
    let entries = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries()
        .find(|fields| fields[0] == user && fields.len() >= 7)
        .or_else(|| {
            let uid = number(user)?;
            entries().find(|fields| fields.len() >= 7 && number(fields[2]) == Some(uid))
        });
    if let Some(fields) = entry
        && let (Some(uid), Some(gid)) = (number(fields[2]), number(fields[3]))
    {
        return Ok(User {
            name: fields[0].to_owned(),
            uid,
            gid,
            groups: memberships(fields[0], groups),
            home: absolute(fields[5], "/"),
            shell: absolute(fields[6], "/bin/sh"),
        });
    }
    let uid = match user {
        "root" => 0,
        _ => number(user).ok_or_else(|| UserError::NoUser(user.to_owned()))?,
    };
    Ok(User {
        name: if uid == 0 { "root" } else { user }.to_owned(),
        uid,
        gid: uid,
        groups: Vec::new(),
        home: if uid == 0 { "/root" } else { "/" }.to_owned(),
        shell: "/bin/sh".to_owned(),
    })
}

fn find_group(group: &str, groups: &str) -> Result<u32, UserError> {
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == group && fields.len() >= 3)
        .and_then(|fields| number(fields[2]))
        .or_else(|| number(group))
        .ok_or_else(|| UserError::NoGroup(group.to_owned()))
}

fn memberships(user: &str, groups: &str) -> Vec<u32> {
    let mut ids: Vec<u32> = groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let gid = number(fields.next()?)?;
            let is_member = fields.next()?.split(',').any(|member| member == user);
            is_member.then_some(gid)
        })
        .take(GROUPS_MAX)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbad\nminus:x:-1:0::/:\nall:x:4294967295:0::/:\n\
                          www:x:33:33::relative:\nann:x:1000:1000:Ann,,,:/home/ann:/bin/zsh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:ann,www\nsudo:x:27:ann\nann:x:1000:ann\nodd:x:x:ann\nshort\n";

    #[test]
    fn users_have_their_groups() {
        let ann = find_user("ann", None, PASSWD, GROUP).unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.groups.as_slice()),
            (1000, 1000, [4, 27].as_slice())
        );
        assert_eq!((ann.home.as_str(), ann.shell.as_str()), ("/home/ann", "/bin/zsh"));
        assert_eq!(find_user("1000", None, PASSWD, GROUP).unwrap(), ann);
        let other = find_user("ann", Some("adm"), PASSWD, GROUP).unwrap();
        assert_eq!((other.gid, other.groups), (4, vec![27, 1000]));
        assert_eq!(find_user("ann", Some("77"), PASSWD, GROUP).unwrap().gid, 77);
    }

    #[test]
    fn relative_homes_and_missing_shells_are_replaced() {
        let www = find_user("www", None, PASSWD, GROUP).unwrap();
        assert_eq!((www.home.as_str(), www.shell.as_str()), ("/", "/bin/sh"));
    }

    #[test]
    fn root_and_numbers_need_no_entry() {
        let root = find_user("root", None, "", "").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        assert_eq!(find_user("0", None, "", "").unwrap(), root);
        let some = find_user("4711", None, PASSWD, GROUP).unwrap();
        assert_eq!((some.name.as_str(), some.uid, some.gid), ("4711", 4711, 4711));
    }

    #[test]
    fn what_is_nobodys_is_refused() {
        for name in ["eve", "minus", "all", "4294967295", "65535", "-1", "+5", "", "bad"] {
            assert_eq!(
                find_user(name, None, PASSWD, GROUP),
                Err(UserError::NoUser(name.to_owned())),
                "{name}"
            );
        }
        assert_eq!(
            find_user("ann", Some("eve"), PASSWD, GROUP),
            Err(UserError::NoGroup("eve".into()))
        );
    }
}
