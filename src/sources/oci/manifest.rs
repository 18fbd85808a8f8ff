//! The documents of an image: index, manifest and configuration, of the OCI and of Docker, as far as they matter here.
//!
//! They are hostile: read with a cap, and never taken for another kind than the one they say they are.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::platform::Platform;
use crate::sources::digest::Digest;
use crate::sources::source::shown;

/// The longest document in bytes, as registries have it.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// The most layers that are unpacked: Docker makes 127 at the most.
const MAX_LAYERS: usize = 1000;

/// The annotation that has an image's tag in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a registry is asked for.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                                   application/vnd.docker.distribution.manifest.list.v2+json, \
                                   application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// How the types of layers begin. How they are compressed is told by their bytes.
const LAYERS: [&str; 3] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// What points at a document or a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    /// Bytes; nobody says how many in an archive of `docker save`.
    #[serde(default)]
    pub(super) size: Option<u64>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    /// What it is, if it is no image.
    #[serde(default)]
    pub(super) artifact_type: Option<String>,
}

impl Descriptor {
    /// Whether it says that it is no image, but for example what is said of one.
    pub(super) fn is_artifact(&self) -> bool {
        let kind = self.artifact_type.as_deref().unwrap_or_default();
        !kind.is_empty() && !CONFIGS.contains(&kind)
    }

    /// The image's tag, in a layout.
    pub(super) fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }

    /// What its bytes have to add up to.
    pub(super) fn sum(&self) -> Result<Digest, String> {
        Digest::parse(&self.digest)
    }
}

/// A list of images, or one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    /// The lowest first.
    pub(super) layers: Vec<Descriptor>,
}

/// What any of them has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

impl Document {
    /// Understands one that is said to be of the type `said`, if that is not empty. An error completes the sentence "the
    /// manifest …".
    pub(super) fn parse(bytes: &[u8], said: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| format!("cannot be understood: {}", shown(&error.to_string())))?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err("is of Docker's first kind (schema 1), which is not taken any more".to_owned());
        }
        // The same bytes must not be an index to one and a manifest to another: CVE-2021-41190.
        let is_one = |known: &[&str]| {
            [said, raw.media_type.as_deref().unwrap_or_default()]
                .iter()
                .any(|kind| known.contains(kind))
        };
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if !is_one(&MANIFESTS) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) if !is_one(&INDEXES) => {
                Manifest { config, layers }.checked().map(Self::Manifest)
            }
            (None, None, None) => Err("is neither an index nor a manifest".to_owned()),
            _ => Err("is not what it says to be: neither clearly an index nor clearly a manifest".to_owned()),
        }
    }
}

impl Manifest {
    pub(super) fn checked(self) -> Result<Self, String> {
        let kind = self.config.media_type.as_str();
        if !kind.is_empty() && !CONFIGS.contains(&kind) {
            return Err(format!(
                "is of no image of a machine, but of something else ('{}')",
                shown(kind)
            ));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(format!(
                "has {} layers: more than {MAX_LAYERS} are not taken",
                self.layers.len()
            ));
        }
        for (at, layer) in self.layers.iter().enumerate() {
            let kind = layer.media_type.as_str();
            if kind.ends_with("+encrypted") {
                return Err(format!("has an encrypted layer ({})", at + 1));
            }
            if !kind.is_empty() && !LAYERS.iter().any(|known| kind.starts_with(known)) {
                return Err(format!(
                    "has a layer ({}) of an unknown kind ('{}')",
                    at + 1,
                    shown(kind)
                ));
            }
        }
        Ok(self)
    }
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) os: Option<String>,
    #[serde(default)]
    pub(super) architecture: Option<String>,
    #[serde(default)]
    pub(super) variant: Option<String>,
    #[serde(default, rename = "config")]
    pub(super) execution: Option<Execution>,
    #[serde(default)]
    pub(super) rootfs: Option<RootFs>,
}

/// The uncompressed layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

/// What it starts, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Execution {
    #[serde(default)]
    pub(super) user: Option<String>,
    #[serde(default)]
    pub(super) env: Option<Vec<String>>,
    #[serde(default)]
    pub(super) entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub(super) cmd: Option<Vec<String>>,
    #[serde(default)]
    pub(super) working_dir: Option<String>,
    #[serde(default)]
    pub(super) stop_signal: Option<String>,
    #[serde(default)]
    pub(super) exposed_ports: Option<BTreeMap<String, Value>>,
}

impl Config {
    /// An error completes the sentence "the configuration …".
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("cannot be understood: {}", shown(&error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn manifest(config: &str, layer: &str) -> Result<Document, String> {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{DIGEST}","size":3}},
                "layers":[{{"mediaType":"{layer}","digest":"{DIGEST}","size":3}}]}}"#
        );
        Document::parse(text.as_bytes(), "")
    }

    #[test]
    fn images_are_told_from_other_things() {
        for layer in ["tar", "tar+gzip", "tar+zstd", "nondistributable"] {
            let layer = format!("application/vnd.oci.image.layer.v1.{layer}");
            assert!(manifest(CONFIGS[0], &layer).is_ok(), "{layer}");
        }
        assert!(manifest(CONFIGS[1], "application/vnd.docker.image.rootfs.diff.tar.gzip").is_ok());
        for (config, layer, message) in [
            ("application/vnd.cncf.helm.config.v1+json", LAYERS[1], "something else"),
            (
                CONFIGS[0],
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "encrypted",
            ),
            (CONFIGS[0], "text/plain", "unknown kind"),
        ] {
            let error = manifest(config, layer).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_document_is_of_one_kind() {
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert_eq!(Document::parse(index.as_bytes(), ""), Ok(Document::Index(Vec::new())));
        assert_eq!(
            Document::parse(index.as_bytes(), INDEXES[1]),
            Ok(Document::Index(Vec::new()))
        );
        for (text, said, message) in [
            (index, MANIFESTS[0], "not what it says to be"),
            (r#"{"manifests":[],"layers":[]}"#, "", "not what it says to be"),
            (
                r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
                "",
                "not what it says to be",
            ),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "", "schema 1"),
            (r#"{"schemaVersion":2}"#, "", "neither an index nor a manifest"),
            ("{", "", "cannot be understood"),
            (
                r#"{"manifests":[{"digest":"x","size":-1}]}"#,
                "",
                "cannot be understood",
            ),
            ("<html>", "", "cannot be understood"),
        ] {
            let error = Document::parse(text.as_bytes(), said).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(Document::parse(format!(r#"{{"x":{deep}"#).as_bytes(), "").is_err());
    }
}
