//! `org.freedesktop.DBus.Properties`: all properties of an object in one call, read by name and type.

use std::collections::HashMap;

use zbus::wire::{OwnedVariant, Variant};

use super::systemd1::Setting;
use super::{Bus, BusError, classify};

/// The properties of one interface of one object, as they were at the time of the call.
#[derive(Debug, Default)]
pub struct Properties(HashMap<String, OwnedVariant>);

impl Bus {
    /// `GetAll` on one interface. `about` names the object in errors.
    pub(crate) async fn properties(
        &self,
        service: (&str, &'static str),
        path: &str,
        interface: &str,
        about: &str,
    ) -> Result<Properties, BusError> {
        let doing = format!("read the properties of '{about}'");
        let failed = |error: zbus::Error| classify(&error, service.1, &doing, about);
        let reply = self
            .connection()
            .call_method(
                Some(service.0),
                path,
                Some("org.freedesktop.DBus.Properties"),
                "GetAll",
                &(interface,),
            )
            .await
            .map_err(failed)?;
        reply
            .body()
            .deserialize::<HashMap<String, OwnedVariant>>()
            .map(Properties)
            .map_err(failed)
    }

    /// `Get` of some properties, all at once. `about` names the object in errors.
    pub(crate) async fn some_properties(
        &self,
        service: (&str, &'static str),
        path: &str,
        interface: &str,
        names: &[&'static str],
        about: &str,
    ) -> Result<Properties, BusError> {
        let get = async |name: &'static str| {
            let arguments = (interface, name);
            let properties = Some("org.freedesktop.DBus.Properties");
            let call = self
                .connection()
                .call_method(Some(service.0), path, properties, "Get", &arguments);
            let value = call.await?.body().deserialize::<OwnedVariant>()?;
            Ok((name.to_owned(), value))
        };
        let values = futures_util::future::try_join_all(names.iter().copied().map(get)).await;
        let doing = format!("read the properties of '{about}'");
        let values = values.map_err(|error: zbus::Error| classify(&error, service.1, &doing, about))?;
        Ok(Properties(values.into_iter().collect()))
    }
}

impl From<HashMap<String, OwnedVariant>> for Properties {
    fn from(properties: HashMap<String, OwnedVariant>) -> Self {
        Self(properties)
    }
}

impl Properties {
    /// One property, for tests.
    #[cfg(test)]
    pub(crate) fn of(name: &str, setting: &Setting) -> Self {
        let value =
            OwnedVariant::try_from(Variant::from(setting)).unwrap_or_else(|_| unreachable!("no file descriptor"));
        Self(HashMap::from([(name.to_owned(), value)]))
    }

    fn value(&self, name: &str) -> Option<&Variant<'static>> {
        self.0.get(name).map(|v| &**v)
    }

    /// A string or object path; empty if missing.
    #[must_use]
    pub fn string(&self, name: &str) -> String {
        match self.value(name) {
            Some(Variant::Str(text)) => text.to_string(),
            Some(Variant::ObjectPath(path)) => path.to_string(),
            _ => String::new(),
        }
    }

    /// An unsigned number of any width; `None` if missing, or if it is the type's maximum, which systemd uses
    /// for "infinity" and for "not set".
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Variant::U64(u64::MAX) | Variant::U32(u32::MAX) => None,
            Variant::U64(number) => Some(*number),
            Variant::U32(number) => Some(u64::from(*number)),
            Variant::I32(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Whether the first member of a structure is a number above zero.
    pub(crate) fn begins_with_number(&self, name: &str) -> bool {
        let Some(Variant::Structure(structure)) = self.value(name) else {
            return false;
        };
        matches!(structure.fields().first(), Some(Variant::U32(1..)))
    }

    /// The assertions of a unit, of `a(sbbsi)`: name, value (with `!` before it if it is negated), and how it came out, below
    /// zero if it was not met, zero if it was not tried. One of those with `|` is none by itself, and left out.
    pub(crate) fn assertions(&self) -> Vec<(String, String, i32)> {
        let Some(Variant::Array(array)) = self.value("Asserts") else {
            return Vec::new();
        };
        let assertion = |item: &Variant<'_>| {
            let Variant::Structure(item) = item else { return None };
            let [
                Variant::Str(name),
                Variant::Bool(false),
                Variant::Bool(negated),
                Variant::Str(value),
                Variant::I32(result),
            ] = item.fields()
            else {
                return None;
            };
            let not = if *negated { "!" } else { "" };
            Some((name.to_string(), format!("{not}{value}"), *result))
        };
        array.iter().filter_map(assertion).collect()
    }

    /// A boolean; false if missing.
    #[must_use]
    pub fn boolean(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Variant::Bool(true)))
    }

    /// The property as it came.
    pub(crate) fn get(&self, name: &str) -> Option<Variant<'static>> {
        self.value(name).cloned()
    }

    /// The property as it can be set again; `None` if it is missing, or of another type.
    pub(crate) fn setting(&self, name: &str) -> Option<Setting> {
        Some(match self.value(name)? {
            Variant::U64(number) => Setting::Number(*number),
            Variant::U32(number) => Setting::Small(*number),
            Variant::Bool(yes) => Setting::Boolean(*yes),
            Variant::Str(text) => Setting::Text(text.to_string()),
            Variant::Array(array) if array.element_signature().to_string() == "y" => Setting::Bytes(
                array
                    .iter()
                    .filter_map(|item| {
                        if let Variant::U8(byte) = item {
                            Some(*byte)
                        } else {
                            None
                        }
                    })
                    .collect(),
            ),
            Variant::Array(array) if array.element_signature().to_string() == "(st)" => {
                Setting::Pairs(array.iter().filter_map(pair).collect())
            }
            _ => return None,
        })
    }

    /// A number that may be below zero; `None` if missing.
    #[must_use]
    pub fn integer(&self, name: &str) -> Option<i32> {
        match self.value(name)? {
            Variant::I32(number) => Some(*number),
            _ => None,
        }
    }

    /// A list of numbers that may be below zero; empty if missing.
    #[must_use]
    pub fn integers(&self, name: &str) -> Vec<i32> {
        let Some(Variant::Array(array)) = self.value(name) else {
            return Vec::new();
        };
        let number = |item: &Variant<'_>| match item {
            Variant::I32(number) => Some(*number),
            _ => None,
        };
        array.iter().filter_map(number).collect()
    }

    /// Bytes in lower-case hexadecimal, as systemd prints ids; empty if missing.
    #[must_use]
    pub fn hex(&self, name: &str) -> String {
        let Some(Variant::Array(array)) = self.value(name) else {
            return String::new();
        };
        array
            .iter()
            .filter_map(|item| {
                if let Variant::U8(byte) = item {
                    Some(format!("{byte:02x}"))
                } else {
                    None
                }
            })
            .collect()
    }

    /// A list of strings; empty if missing.
    #[must_use]
    pub fn strings(&self, name: &str) -> Vec<String> {
        let Some(Variant::Array(array)) = self.value(name) else {
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| {
                if let Variant::Str(text) = item {
                    Some(text.to_string())
                } else {
                    None
                }
            })
            .collect()
    }

    /// Every property with its value in a printable form, sorted by name.
    #[must_use]
    pub fn printable(&self) -> std::collections::BTreeMap<String, serde_json::Value> {
        self.0
            .iter()
            .map(|(name, value)| (name.clone(), to_json(value)))
            .collect()
    }
}

/// A device and its number.
fn pair(item: &Variant<'_>) -> Option<(String, u64)> {
    let Variant::Structure(structure) = item else {
        return None;
    };
    match structure.fields() {
        [Variant::Str(text), Variant::U64(number)] => Some((text.to_string(), *number)),
        _ => None,
    }
}

/// A D-Bus value as JSON. Numbers stay numbers; dictionaries with string keys become objects.
fn to_json(value: &Variant<'_>) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Variant::U8(n) => Json::from(*n),
        Variant::Bool(b) => Json::from(*b),
        Variant::I16(n) => Json::from(*n),
        Variant::U16(n) => Json::from(*n),
        Variant::I32(n) => Json::from(*n),
        Variant::U32(n) => Json::from(*n),
        Variant::I64(n) => Json::from(*n),
        Variant::U64(n) => Json::from(*n),
        Variant::F64(n) => Json::from(*n),
        Variant::Str(text) => Json::from(text.as_str()),
        Variant::ObjectPath(path) => Json::from(path.as_str()),
        // Ids and hashes, as systemctl prints them.
        Variant::Array(array) if array.element_signature().to_string() == "y" => array
            .iter()
            .filter_map(|item| match item {
                Variant::U8(byte) => Some(format!("{byte:02x}")),
                _ => None,
            })
            .collect::<String>()
            .into(),
        Variant::Array(array) => array.iter().map(to_json).collect(),
        Variant::Structure(structure) => structure.fields().iter().map(to_json).collect(),
        Variant::Variant(inner) => to_json(inner),
        other => Json::from(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(entries: &[(&str, Variant<'static>)]) -> Properties {
        Properties(
            entries
                .iter()
                .map(|(k, v)| ((*k).to_owned(), OwnedVariant::try_from(v.try_clone().unwrap()).unwrap()))
                .collect(),
        )
    }

    #[test]
    fn the_maximum_means_not_set() {
        let p = properties(&[
            ("a", Variant::U64(u64::MAX)),
            ("b", Variant::U64(7)),
            ("c", Variant::U32(3)),
        ]);
        assert_eq!(
            (p.number("a"), p.number("b"), p.number("c"), p.number("d")),
            (None, Some(7), Some(3), None)
        );
    }

    #[test]
    fn ids_are_hexadecimal() {
        let p = properties(&[("id", Variant::from(vec![0xde_u8, 0xad, 0x01]))]);
        assert_eq!(p.hex("id"), "dead01");
    }
}
