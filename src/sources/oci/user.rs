//! The user whom an image's program runs as, as far as systemd-nspawn can do that: it asks `getent` in the machine.

use crate::machine::text::printable;
use crate::machine::users::{UserError, find_user};
use crate::sources::SourceError;
use crate::sys::files::Root;

/// The largest passwd(5) and group(5) of an image that are read, in bytes.
const MAX: u64 = 1 << 20;

/// The user for `User=`; `None` for root, and with a note where it cannot be the one that the image says.
///
/// For a command that is run in the machine the name is enough. An account without a name gets one, as nobody finds it
/// otherwise.
pub(super) fn settle(
    root: &Root,
    said: &str,
    is_for_command: bool,
    notes: &mut Vec<String>,
) -> Result<Option<String>, SourceError> {
    let (user, group) = said
        .split_once(':')
        .map_or((said, None), |(user, group)| (user, Some(group)));
    if ["", "root", "0"].contains(&user) {
        return Ok(None);
    }
    let (passwd, groups) = (text(root, "etc/passwd")?, text(root, "etc/group")?);
    let found = match find_user(user, group.filter(|group| !group.is_empty()), &passwd, &groups) {
        Ok(found) => found,
        Err(UserError::NoGroup(group)) => {
            notes.push(format!(
                "its group '{}' is left out: there is none in it",
                printable(&group)
            ));
            match find_user(user, None, &passwd, &groups) {
                Ok(found) => found,
                Err(_) => return Ok(no_user(user, notes)),
            }
        }
        Err(UserError::NoUser(_)) => return Ok(no_user(user, notes)),
    };
    if found.uid == 0 {
        return Ok(None);
    }
    let line = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == found.name);
    if is_for_command {
        return Ok(Some(found.name));
    }
    if !["usr/bin/getent", "bin/getent"]
        .iter()
        .any(|program| root.is_executable(program) == Some(true))
    {
        notes.push(format!(
            "its program runs as the machine's root, and not as '{}': systemd-nspawn finds users by 'getent', which it has not",
            printable(user)
        ));
        return Ok(None);
    }
    match line {
        Some(fields) => {
            if fields.get(3).is_some_and(|gid| gid.parse() != Ok(found.gid)) {
                notes.push(format!(
                    "its program runs in the group {} of its user, and not in {}",
                    fields[3], found.gid
                ));
            }
            Ok(Some(found.name))
        }
        None => {
            let name = format!("user{}", found.uid);
            // Docker has these in the group of root.
            let gid = if group.is_some() { found.gid } else { 0 };
            let end = if passwd.is_empty() || passwd.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            let passwd = format!("{passwd}{end}{name}:x:{}:{gid}::/:/bin/sh\n", found.uid);
            root.create_dir_all("etc", 0o755)?;
            root.write("etc/passwd", passwd.as_bytes(), 0o644)?;
            Ok(Some(name))
        }
    }
}

fn no_user(user: &str, notes: &mut Vec<String>) -> Option<String> {
    notes.push(format!(
        "its program runs as the machine's root: there is no user '{}' in it",
        printable(user)
    ));
    None
}

fn text(root: &Root, file: &str) -> Result<String, SourceError> {
    match root.read(file, MAX) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.is_not_found() => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}
