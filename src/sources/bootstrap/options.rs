//! Lexical checks of what a user gives: all of it ends up in argument lists, URLs and apt's files.

use super::super::{BootstrapOptions, SourceError, shown};

/// Refuses what no package, component, architecture, variant or URL can be called.
pub(super) fn check(options: &BootstrapOptions) -> Result<(), SourceError> {
    for name in &options.include {
        // Debian policy 5.6.1
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        let first = name
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        check_word(
            "include",
            name,
            first && name.len() > 1 && name.chars().all(rest),
            "no Debian package has such a name",
        )?;
    }
    for name in &options.components {
        check_word(
            "components",
            name,
            is_word(name, "-/.+"),
            "no component has such a name",
        )?;
    }
    if let Some(arch) = &options.arch {
        check_word("arch", arch, is_word(arch, "-"), "no architecture has such a name")?;
    }
    if let Some(variant) = &options.variant {
        let known = [
            "minbase",
            "buildd",
            "important",
            "standard",
            "required",
            "essential",
            "apt",
            "-",
        ];
        check_word(
            "variant",
            variant,
            known.contains(&variant.as_str()),
            "variants are minbase, buildd, important and standard",
        )?;
    }
    if let Some(mirror) = &options.mirror {
        check_url("mirror", mirror, &["http://", "https://", "file:/", "copy:/"])?;
    }
    if let Some(proxy) = &options.proxy {
        check_url("proxy", proxy, &["http://", "https://"])?;
    }
    Ok(())
}

fn is_word(word: &str, also: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.len() <= 64
        && word.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

fn check_url(option: &'static str, url: &str, schemes: &[&str]) -> Result<(), SourceError> {
    let scheme = schemes.iter().find(|scheme| url.starts_with(**scheme));
    let rest = scheme.map_or("", |scheme| &url[scheme.len()..]);
    let reason = if scheme.is_none() || rest.is_empty() {
        match option {
            "mirror" => "a mirror is an http:, https:, file: or copy: URL",
            _ => "a proxy is an http: or https: URL",
        }
    } else if url
        .chars()
        .any(|c| !c.is_ascii_graphic() || "\"'[]<>\\^`{}|#".contains(c))
    {
        "characters in it do not belong in a URL: write them as %XX"
    } else {
        return Ok(());
    };
    // A password in it must not reach a log.
    Err(bad(option, &super::without_password(url), reason))
}

fn check_word(option: &'static str, given: &str, valid: bool, reason: &'static str) -> Result<(), SourceError> {
    if valid { Ok(()) } else { Err(bad(option, given, reason)) }
}

fn bad(option: &'static str, given: &str, reason: &'static str) -> SourceError {
    SourceError::BadOption {
        option,
        given: shown(given),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_slips_into_an_argument_list() {
        let good = BootstrapOptions {
            include: vec!["g++-12".to_owned(), "libstdc++6".to_owned()],
            components: vec!["main".to_owned(), "non-free-firmware".to_owned()],
            mirror: Some("http://user:pw@mirror.example:3142/deb.debian.org/debian/".to_owned()),
            proxy: Some("http://[::1]:3128".replace(['[', ']'], "")),
            arch: Some("arm64".to_owned()),
            variant: Some("minbase".to_owned()),
            ..BootstrapOptions::default()
        };
        check(&good).unwrap();
        for bad in ["", "-o", "a", "A", "x y", "vim,nano", "../x", "x=1"] {
            let options = BootstrapOptions {
                include: vec![bad.to_owned()],
                ..good.clone()
            };
            assert!(check(&options).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "ftp://x",
            "http://",
            "deb http://x",
            "http://x y",
            "http://x\n",
            "/srv",
        ] {
            let options = BootstrapOptions {
                mirror: Some(bad.to_owned()),
                ..good.clone()
            };
            assert!(check(&options).is_err(), "{bad:?}");
        }
        for bad in ["", "--help", "custom"] {
            let options = BootstrapOptions {
                variant: Some(bad.to_owned()),
                ..good.clone()
            };
            assert!(check(&options).is_err(), "{bad:?}");
        }
    }
}
