//! Command lines as systemd reads them in `ExecStartPre=` and its kin, see "COMMAND LINES" in systemd.service(5).

/// The specifiers of system services, see systemd.unit(5).
const SPECIFIERS: &str = "aAbBCdDEfgGhHiIjJlLmMnNopPqsStTuUvVwW%";

/// Why systemd would not run a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Nothing to run.
    #[error("there is no command in it")]
    Empty,
    /// Not an absolute path.
    #[error("'{0}' is not an absolute path: systemd runs no shell, and the PATH of a shell is not its own")]
    Relative(String),
    /// `@` without a name for the program to be called by.
    #[error("'@' wants a second word: the name that the program is called by")]
    NoName,
    /// The path of a directory.
    #[error("'{0}' is a directory")]
    Directory(String),
    /// A quote that is never closed.
    #[error("a quote is never closed")]
    Quote,
    /// A backslash and what stands behind it.
    #[error("'\\{0}' means nothing to systemd: write '\\\\' for a backslash")]
    Escape(String),
    /// A percent sign and what stands behind it.
    #[error("'%{0}' is no specifier of systemd: write '%%' for a percent sign")]
    Specifier(String),
}

/// Whether systemd takes it; the program that it runs.
pub fn check(line: &str) -> Result<String, CommandError> {
    let words = split(line)?;
    for word in words.iter().flatten() {
        let mut chars = word.chars();
        while let Some(c) = chars.next() {
            if c == '%' {
                let next = chars.next();
                if !next.is_some_and(|next| SPECIFIERS.contains(next)) {
                    return Err(CommandError::Specifier(next.map(String::from).unwrap_or_default()));
                }
            }
        }
    }
    let mut expects_program = true;
    let mut first = None;
    for (place, word) in words.iter().enumerate() {
        let Some(word) = word else {
            if expects_program {
                return Err(CommandError::Empty);
            }
            expects_program = true;
            continue;
        };
        if expects_program {
            let (program, is_renamed) = without_prefixes(word);
            match program.chars().next() {
                None => return Err(CommandError::Empty),
                // What a specifier stands for is systemd's.
                Some('/' | '%') => {}
                Some(_) => return Err(CommandError::Relative(program.to_owned())),
            }
            if program.ends_with('/') {
                return Err(CommandError::Directory(program.to_owned()));
            }
            if is_renamed && !matches!(words.get(place + 1), Some(Some(_))) {
                return Err(CommandError::NoName);
            }
            first.get_or_insert_with(|| program.to_owned());
            expects_program = false;
        }
    }
    first.ok_or(CommandError::Empty)
}

/// The words of each command of a line, the special characters aside, as systemd has them in `argv`: specifiers are as they
/// were written. `None` if systemd would not run it.
#[must_use]
pub fn arguments(line: &str) -> Option<Vec<Vec<String>>> {
    let words = split(line).ok()?;
    let commands = words.split(Option::is_none).map(|command| {
        let mut words: Vec<String> = command.iter().flatten().cloned().collect();
        let first = words.first_mut()?;
        let (program, is_renamed) = without_prefixes(first);
        *first = program.to_owned();
        if is_renamed {
            words.remove(0);
        }
        words.first().is_some_and(|first| !first.is_empty()).then_some(words)
    });
    // A semicolon at the end begins no other.
    commands
        .filter(|command| !matches!(command, Some(words) if words.is_empty()))
        .collect()
}

/// Whether a word of a file is the one that systemd has: what a specifier stands for only systemd knows.
#[must_use]
pub fn is_word(written: &str, has: &str) -> bool {
    let Some((before, rest)) = written.split_once('%') else {
        return written == has;
    };
    let Some(has) = has.strip_prefix(before) else {
        return false;
    };
    let mut rest = rest.chars();
    match rest.next() {
        Some('%') => has.strip_prefix('%').is_some_and(|has| is_word(rest.as_str(), has)),
        Some(_) => has
            .char_indices()
            .map(|(at, _)| at)
            .chain([has.len()])
            .any(|at| is_word(rest.as_str(), &has[at..])),
        None => false,
    }
}

/// The program of a first word, and whether `@` is among its special characters. systemd takes each of them once, and only
/// one of `+`, `!` and `!!`; `|` is known from 258 on, and not taken here.
pub(super) fn without_prefixes(word: &str) -> (&str, bool) {
    let (mut rest, mut seen) = (word, String::new());
    while let Some(c @ ('@' | '-' | ':' | '+' | '!')) = rest.chars().next() {
        let is_taken = match c {
            '!' => seen.contains('+') || seen.matches('!').count() == 2,
            '+' => seen.contains(['+', '!']),
            _ => seen.contains(c),
        };
        if is_taken {
            break;
        }
        seen.push(c);
        rest = &rest[1..];
    }
    (rest, seen.contains('@'))
}

/// The words, with quotes and escapes taken away, as `extract_first_word()` does for command lines. `None` is a semicolon
/// that stands alone: it ends a command, and another begins.
fn split(line: &str) -> Result<Vec<Option<String>>, CommandError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let ends_word = |rest: &str| rest.is_empty() || rest.starts_with([' ', '\t']);
        if quote.is_none() && word.is_none() {
            if c == ';' && ends_word(chars.as_str()) {
                words.push(None);
                continue;
            }
            if let Some(rest) = chars
                .as_str()
                .strip_prefix(';')
                .filter(|rest| c == '\\' && ends_word(rest))
            {
                words.push(Some(";".to_owned()));
                chars = rest.chars();
                continue;
            }
        }
        match (quote, c) {
            (_, '\\') => word.get_or_insert_default().push(unescape(&mut chars)?),
            (Some(open), _) if open == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take().map(Some)),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(CommandError::Quote);
    }
    words.extend(word.map(Some));
    Ok(words)
}

/// What follows a backslash, see "Supported escapes" in systemd.service(5).
fn unescape(chars: &mut std::str::Chars<'_>) -> Result<char, CommandError> {
    let wrong = |text: String| CommandError::Escape(text);
    let c = chars.next().ok_or_else(|| wrong(String::new()))?;
    let mut number = |c: char, digits: usize, radix: u32| {
        let text: String = chars.by_ref().take(digits).collect();
        let code = u32::from_str_radix(&text, radix).ok().filter(|&code| code > 0);
        let sound = text.len() == digits && text.chars().all(|c| c.is_digit(radix));
        code.filter(|_| sound)
            .and_then(char::from_u32)
            .ok_or_else(|| CommandError::Escape(format!("{c}{text}")))
    };
    match c {
        'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' | '"' | '\'' => Ok(c),
        's' => Ok(' '),
        'x' => number(c, 2, 16),
        'u' => number(c, 4, 16),
        'U' => number(c, 8, 16),
        '0'..='7' => {
            let rest: String = chars.by_ref().take(2).collect();
            let text = format!("{c}{rest}");
            let code = u32::from_str_radix(&text, 8).ok().filter(|_| text.len() == 3);
            code.and_then(char::from_u32).ok_or_else(|| wrong(text))
        }
        _ => Err(wrong(c.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_runs() {
        for (line, program) in [
            ("/bin/true", "/bin/true"),
            ("-/bin/sh -c 'echo \"%i\" >>/tmp/x'", "/bin/sh"),
            ("@+/bin/a b", "/bin/a"),
            ("-!!:/bin/a", "/bin/a"),
            ("/bin/a ; -/bin/b", "/bin/a"),
            ("/bin/a \\; b", "/bin/a"),
            ("\"/opt/my program\" x\\x20y", "/opt/my program"),
            ("/bin/date +%%s", "/bin/date"),
        ] {
            assert_eq!(check(line).as_deref(), Ok(program), "{line}");
        }
    }

    #[test]
    fn commands_are_known_by_their_words() {
        let words = |line: &str| arguments(line).unwrap_or_default();
        assert_eq!(
            words("-+/bin/a 'b c' ; /bin/d"),
            [vec!["/bin/a", "b c"], vec!["/bin/d"]]
        );
        assert_eq!(words("@-/bin/a name x"), [["name", "x"]]);
        assert_eq!(words("/bin/a 'b"), [[""; 0]; 0]);
        for (written, has, same) in [
            ("%i", "web", true),
            ("%i", "", true),
            ("a%i.%n", "aweb.x.y", true),
            ("a%i-b", "aweb", false),
            ("+%%s", "+%s", true),
            ("+%%s", "+5s", false),
            ("x", "xy", false),
        ] {
            assert_eq!(is_word(written, has), same, "{written} {has}");
        }
    }

    #[test]
    fn what_it_does_not() {
        for (line, wanted) in [
            ("", CommandError::Empty),
            ("-", CommandError::Empty),
            ("/bin/a ; ; /bin/b", CommandError::Empty),
            ("true", CommandError::Relative("true".into())),
            ("++/bin/a", CommandError::Relative("+/bin/a".into())),
            ("!+/bin/a", CommandError::Relative("+/bin/a".into())),
            ("--/bin/a", CommandError::Relative("-/bin/a".into())),
            ("|/bin/a", CommandError::Relative("|/bin/a".into())),
            ("@/bin/a", CommandError::NoName),
            ("@/bin/a ; /bin/b", CommandError::NoName),
            ("/bin/a ; b", CommandError::Relative("b".into())),
            ("/bin/", CommandError::Directory("/bin/".into())),
            ("/bin/a 'b", CommandError::Quote),
            ("/bin/a x\\;", CommandError::Escape(";".into())),
            ("/bin/a \\q", CommandError::Escape("q".into())),
            ("/bin/a \\x0", CommandError::Escape("x0".into())),
            ("/bin/date +%e", CommandError::Specifier("e".into())),
            ("/bin/date %", CommandError::Specifier(String::new())),
        ] {
            assert_eq!(check(line), Err(wanted), "{line}");
        }
    }
}
