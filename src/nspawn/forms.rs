//! Forms of values that have parts: ports, CPU ranges, user ranges, paths and mounts.

use std::collections::HashSet;

use super::number::integer_in;
use super::value::ValueType;
use super::words::{Unbalanced, split_field, split_fields};

/// The protocol and the host's port of a `Port=` value, which must not come twice.
pub(super) fn port(value: &str) -> Option<(&'static str, u16)> {
    let (protocol, ports) = match (value.strip_prefix("tcp:"), value.strip_prefix("udp:")) {
        (Some(ports), _) => ("tcp", ports),
        (_, Some(ports)) => ("udp", ports),
        _ => ("tcp", value),
    };
    let number = |text: &str| {
        let text = (!text.starts_with([' ', '\t'])).then_some(text)?;
        u16::try_from(integer_in(text, 1, 65_535)?).ok()
    };
    match ports.split_once(':') {
        Some((host, container)) => number(container).and(number(host)),
        None => number(ports),
    }
    .map(|host| (protocol, host))
}

pub(super) fn cpu_range(word: &str) -> bool {
    cpu_bounds(word).is_some_and(|(low, high)| low <= high)
}

pub(super) fn cpu_bounds(word: &str) -> Option<(i128, i128)> {
    let cpu = |text| integer_in(text, 0, 8191);
    match word.split_once('-') {
        Some((low, high)) => cpu(low).zip(cpu(high)),
        None => cpu(word).map(|cpu| (cpu, cpu)),
    }
}

pub(super) fn is_id128(value: &str) -> bool {
    let digits: String = match value.len() {
        32 => value.to_owned(),
        36 if [8, 13, 18, 23].iter().all(|&at| value.as_bytes()[at] == b'-') => value.split('-').collect(),
        _ => return false,
    };
    digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()) && digits.bytes().any(|b| b != b'0')
}

pub(super) fn is_absolute(path: &str) -> bool {
    path.starts_with('/')
}

pub(super) fn is_normal_path(path: &str) -> bool {
    is_absolute(path) && path.split('/').all(|part| part != "..")
}

/// A path without `.`, `..` and `//` (`path_is_normalized()`).
pub(super) fn is_plain_path(path: &str) -> bool {
    let dots = path.split('/').any(|part| matches!(part, "." | ".."));
    is_absolute(path) && !dots && !path.contains("//") && path.len() < 4096
}

pub(super) fn is_short_path(path: &str) -> bool {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    parts.iter().all(|part| part.len() <= 255) && parts.iter().map(|part| part.len() + 1).sum::<usize>() < 4096
}

/// A path of the host, or of the image behind `+`.
pub(super) fn is_source(path: &str) -> bool {
    !path.is_empty() && path.strip_prefix('+').is_none_or(is_absolute)
}

pub(super) fn is_bind(value: &str) -> Result<bool, Unbalanced> {
    let (source, rest) = split_field(value)?;
    let destination = match rest {
        Some(rest) => split_field(rest)?.0,
        None => source.strip_prefix('+').unwrap_or(&source).to_owned(),
    };
    Ok((source.is_empty() || is_source(&source)) && is_absolute(&destination))
}

pub(super) fn is_overlay(fields: &[String]) -> bool {
    match fields {
        [] | [_] => false,
        [lower, upper] => is_source(lower) && is_source(upper),
        [lower @ .., upper, destination] => {
            lower.iter().all(|path| is_source(path))
                && (upper.is_empty() || is_source(upper))
                && is_absolute(destination)
        }
    }
}

/// What of a list systemd takes only once: the protocol and host port of [`ValueType::Port`].
pub(super) fn is_repeated_port(seen: &mut HashSet<(&'static str, u16)>, value: &str) -> bool {
    port(value).is_some_and(|port| !seen.insert(port))
}

/// The paths of the host that a valid `Bind=` or `Overlay=` value, or one of their kind, needs.
pub(super) fn sources_of(kind: ValueType, value: &str) -> Vec<String> {
    let mut paths = match kind {
        ValueType::Bind => split_field(value).map(|(source, _)| vec![source]).unwrap_or_default(),
        _ => split_fields(value).unwrap_or_default(),
    };
    // The last of three or more is where they are mounted inside.
    if kind == ValueType::Overlay && paths.len() > 2 {
        paths.pop();
    }
    // Behind `+` stands a path of the image; nothing stands for a directory that systemd-nspawn makes.
    paths.retain(|path| is_absolute(path));
    paths
}
