//! What `src/sys/bus/` calls is what systemd 252, 257 and 262 offer: names and signatures, against the XML in `dbus/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::{FnArg, GenericArgument, Item, PathArguments, ReturnType, TraitItem, Type};

use super::repository;

const VERSIONS: &[&str] = &["252", "257", "262"];

/// Members of an interface: "method LoadUnit", "signal JobRemoved", "property Version" → "s -> o", "uoss", "s".
type Members = BTreeMap<String, String>;

/// The interface as one version of systemd has it. The files are `dbus/refresh`'s: one element a line.
fn offered(version: &str, interface: &str) -> Members {
    let mut members = Members::new();
    let (mut member, mut ins, mut outs) = (String::new(), String::new(), String::new());
    for line in repository(&format!("dbus/{version}/{interface}.xml")).lines() {
        let attribute = |name: &str| {
            let start = line.find(&format!(" {name}=\""))? + name.len() + 3;
            line[start..].split('"').next()
        };
        let name = || attribute("name").unwrap_or_default();
        match line.trim_start().split([' ', '>']).next() {
            Some("<property") => {
                members.insert(format!("property {}", name()), attribute("type").unwrap().to_owned());
            }
            Some("<method") => (member, ins, outs) = (format!("method {}", name()), String::new(), String::new()),
            Some("<signal") => (member, ins, outs) = (format!("signal {}", name()), String::new(), String::new()),
            Some("<arg") if attribute("direction") == Some("out") => outs += attribute("type").unwrap(),
            Some("<arg") => ins += attribute("type").unwrap(),
            Some("</method") => drop(members.insert(member.clone(), format!("{ins} -> {outs}"))),
            // Arguments of signals are said to be "out", or nothing at all.
            Some("</signal") => drop(members.insert(member.clone(), format!("{ins}{outs}"))),
            _ => {}
        }
    }
    assert!(!members.is_empty(), "dbus/{version}/{interface}.xml has no members");
    members
}

/// The types that `type X = …;` names in a source file.
type Aliases = BTreeMap<String, Type>;

/// The D-Bus signature of a Rust type, as zbus has it.
fn signature(kind: &Type, aliases: &Aliases) -> String {
    match kind {
        Type::Reference(reference) => signature(&reference.elem, aliases),
        Type::Slice(slice) => format!("a{}", signature(&slice.elem, aliases)),
        // One value of unit type is none at all.
        Type::Tuple(tuple) if tuple.elems.is_empty() => String::new(),
        Type::Tuple(tuple) => format!(
            "({})",
            tuple
                .elems
                .iter()
                .map(|item| signature(item, aliases))
                .collect::<String>()
        ),
        Type::Path(path) => {
            let segment = path.path.segments.last().unwrap();
            let arguments: Vec<String> = match &segment.arguments {
                PathArguments::AngleBracketed(list) => list
                    .args
                    .iter()
                    .filter_map(|argument| {
                        if let GenericArgument::Type(kind) = argument {
                            Some(signature(kind, aliases))
                        } else {
                            None
                        }
                    })
                    .collect(),
                _ => Vec::new(),
            };
            let name = segment.ident.to_string();
            match (name.as_str(), arguments.as_slice()) {
                ("u8", _) => "y".into(),
                ("bool", _) => "b".into(),
                ("i16", _) => "n".into(),
                ("u16", _) => "q".into(),
                ("i32", _) => "i".into(),
                ("u32", _) => "u".into(),
                ("i64", _) => "x".into(),
                ("u64", _) => "t".into(),
                ("f64", _) => "d".into(),
                ("str" | "String", _) => "s".into(),
                ("ObjectPath" | "OwnedObjectPath", _) => "o".into(),
                ("Variant" | "OwnedVariant", _) => "v".into(),
                ("Fd" | "OwnedFd", _) => "h".into(),
                ("Vec", [item]) => format!("a{item}"),
                ("HashMap" | "BTreeMap", [key, value]) => format!("a{{{key}{value}}}"),
                (alias, _) => match aliases.get(alias) {
                    Some(kind) => signature(kind, aliases),
                    None => panic!("what is the D-Bus signature of '{alias}'?"),
                },
            }
        }
        other => panic!("what is the D-Bus signature of {:?}?", std::mem::discriminant(other)),
    }
}

/// The text of an attribute's arguments without blanks: `(property,name="Version")`.
fn arguments(attribute: &syn::Attribute) -> String {
    let syn::Meta::List(list) = &attribute.meta else {
        return String::new();
    };
    list.tokens.to_string().split_whitespace().collect()
}

fn quoted(text: &str, key: &str) -> Option<String> {
    let start = text.find(&format!("{key}=\""))? + key.len() + 2;
    text[start..].split('"').next().map(str::to_owned)
}

/// Without the dot: what zbus makes of a function's name.
fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| word[..1].to_ascii_uppercase() + &word[1..])
        .collect()
}

/// `zbus::Result<T>` → T.
fn returned(output: &ReturnType) -> &Type {
    let ReturnType::Type(_, kind) = output else {
        panic!("a proxy's function returns a Result")
    };
    let Type::Path(path) = &**kind else {
        panic!("a proxy's function returns a Result")
    };
    let PathArguments::AngleBracketed(list) = &path.path.segments.last().unwrap().arguments else {
        panic!("Result<…>")
    };
    match list.args.first() {
        Some(GenericArgument::Type(kind)) => kind,
        _ => panic!("Result<…>"),
    }
}

/// What the proxies of a source file declare: interface → members.
fn declared(source: &str) -> BTreeMap<String, Members> {
    let file = syn::parse_file(source).unwrap();
    let aliases: Aliases = file
        .items
        .iter()
        .filter_map(|item| {
            if let Item::Type(alias) = item {
                Some((alias.ident.to_string(), (*alias.ty).clone()))
            } else {
                None
            }
        })
        .collect();
    let mut interfaces = BTreeMap::new();
    for item in &file.items {
        let Item::Trait(definition) = item else { continue };
        let Some(interface) = definition
            .attrs
            .iter()
            .find_map(|attribute| quoted(&arguments(attribute), "interface"))
        else {
            continue;
        };
        let members = definition.items.iter().filter_map(|item| {
            let TraitItem::Fn(function) = item else { return None };
            let marks: String = function
                .attrs
                .iter()
                .filter(|a| a.path().is_ident("zbus"))
                .map(arguments)
                .collect();
            let name = quoted(&marks, "name").unwrap_or_else(|| camel(&function.sig.ident.to_string()));
            let ins: String = function
                .sig
                .inputs
                .iter()
                .filter_map(|input| {
                    if let FnArg::Typed(input) = input {
                        Some(signature(&input.ty, &aliases))
                    } else {
                        None
                    }
                })
                .collect();
            let out = signature(returned(&function.sig.output), &aliases);
            // Several values come as a tuple: its parentheses are not sent.
            let outs = if out.starts_with('(') {
                out[1..out.len() - 1].to_owned()
            } else {
                out.clone()
            };
            Some(if marks.starts_with("signal") {
                (format!("signal {name}"), ins)
            } else if marks.starts_with("property") {
                (format!("property {name}"), out)
            } else {
                (format!("method {name}"), format!("{ins} -> {outs}"))
            })
        });
        interfaces.insert(interface, members.collect());
    }
    interfaces
}

fn bus_sources() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sys/bus");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|e| e == "rs"))
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect()
}

#[test]
fn proxies_declare_what_every_systemd_has() {
    let mut checked = 0;
    for source in bus_sources() {
        for (interface, members) in declared(&source) {
            for version in VERSIONS {
                let offered = offered(version, &interface);
                for (member, signature) in &members {
                    assert_eq!(
                        Some(signature),
                        offered.get(member),
                        "{member} of {interface} in systemd {version}"
                    );
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 60, "only {checked} members were found in src/sys/bus");
}

/// Properties are read by name out of one `GetAll`; a name that no interface has would read as empty for ever.
#[test]
fn properties_read_by_name_exist_in_every_systemd() {
    let interfaces = [
        "systemd1.Manager",
        "systemd1.Unit",
        "systemd1.Service",
        "systemd1.Scope",
        "systemd1.Job",
        "machine1.Machine",
        "machine1.Image",
    ];
    let kinds = [
        ("string", "s o"),
        ("strings", "as"),
        ("number", "t u i"),
        ("boolean", "b"),
        ("hex", "ay"),
    ];
    let mut read = BTreeSet::new();
    let speaks_to_systemd = |file: &str| {
        ["src/cli", "src/ops", "src/sys", "src/machine"]
            .iter()
            .any(|part| file.starts_with(part))
    };
    for (_, text) in super::examples::sources()
        .into_iter()
        .filter(|(file, _)| speaks_to_systemd(file))
    {
        // Tests have properties of their own.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (reader, kinds) in kinds {
            for (at, found) in text.match_indices(&format!(".{reader}(\"")) {
                read.insert((text[at + found.len()..].split('"').next().unwrap().to_owned(), kinds));
            }
        }
    }
    assert!(read.len() > 15, "only {} properties were found in src", read.len());
    for version in VERSIONS {
        let all: Vec<Members> = interfaces
            .iter()
            .map(|name| offered(version, &format!("org.freedesktop.{name}")))
            .collect();
        for (property, kinds) in &read {
            let found: Vec<_> = all
                .iter()
                .filter_map(|members| members.get(&format!("property {property}")))
                .collect();
            assert!(
                found.iter().any(|kind| kinds.split(' ').any(|k| k == kind.as_str())),
                "systemd {version} has property {property} as {found:?}, which is read as {kinds}"
            );
        }
    }
}

/// systemd refuses a property that it does not have, and all limits of the call with it.
#[test]
fn limits_are_properties_of_every_systemd_since_theirs() {
    use machinist::limit::{KEYS, Kind};
    for version in VERSIONS {
        let offered = offered(version, "org.freedesktop.systemd1.Service");
        let known: u32 = version.parse().unwrap();
        for key in KEYS.iter().filter(|key| known >= key.since) {
            let kind = match key.kind {
                Kind::Cpuset | Kind::Nodes => "ay",
                Kind::Boolean => "b",
                Kind::Word(_) => "s",
                Kind::Percentage => "u",
                Kind::Process(..) => "i",
                kind if kind.per_device() => "a(st)",
                _ => "t",
            };
            let found = offered.get(&format!("property {}", key.property()));
            assert_eq!(
                found.map(String::as_str),
                Some(kind),
                "{} in systemd {version}",
                key.property()
            );
        }
    }
}

#[test]
fn signatures_are_told_from_types() {
    let source = r#"
        type Row = (String, OwnedObjectPath, u32);
        #[zbus::proxy(interface = "a.b")]
        trait T {
            fn list_by(&self, names: &[&str], force: bool) -> zbus::Result<(bool, Vec<Row>)>;
            #[zbus(name = "GetOS")]
            fn get_os(&self) -> zbus::Result<std::collections::HashMap<String, OwnedVariant>>;
            #[zbus(signal)]
            fn gone(&self, id: u32, path: OwnedObjectPath) -> zbus::Result<()>;
            #[zbus(property)]
            fn state(&self) -> zbus::Result<(u8, i64)>;
        }"#;
    let expected = [
        ("method GetOS", " -> a{sv}"),
        ("method ListBy", "asb -> ba(sou)"),
        ("property State", "(yx)"),
        ("signal Gone", "uo"),
    ];
    let expected: Members = expected
        .map(|(member, signature)| (member.to_owned(), signature.to_owned()))
        .into();
    assert_eq!(declared(source)["a.b"], expected);
}
