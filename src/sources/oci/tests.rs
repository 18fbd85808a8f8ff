//! Layouts, archives and registries made by hand, good ones and bad ones.

use std::fs;
use std::io::Write as _;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::sources::sum::Sum;
use crate::sources::{self, CacheUse, DownloadOptions, Source};

mod bad;
mod remote;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layout in the making, and where trees are made of it.
struct Scene {
    dir: TempDir,
    places: Places,
}

/// A layer: what is there by which name.
fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        let is_directory = name.ends_with('/');
        header.set_entry_type(if is_directory {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        // Not by the crate's own check: some of them are hostile.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o755);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_size(text.len() as u64);
        header.set_cksum();
        archive.append(&header, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn base() -> Vec<u8> {
    layer(&[
        ("usr/", ""),
        ("bin/", ""),
        ("bin/app", "#!/bin/sh\n"),
        ("old", "low"),
        ("etc/a", "low"),
    ])
}

fn upper() -> Vec<u8> {
    layer(&[(".wh.old", ""), ("etc/.wh..wh..opq", ""), ("etc/b", "up")])
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sum::of(bytes))
}

fn points_at(bytes: &[u8], kind: &str) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

fn with(mut value: Value, key: &str, to: Value) -> Value {
    value[key] = to;
    value
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("image/blobs/sha256")).unwrap();
        fs::write(dir.path().join("image/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let places = Places {
            cache: dir.path().join("cache"),
            ..Places::default()
        };
        Self { dir, places }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path(&format!("image/blobs/sha256/{}", Sum::of(bytes)));
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Puts an image of these layers there, and returns what points at its manifest.
    fn image(&self, layers: &[Vec<u8>]) -> Value {
        self.image_for("amd64", layers, LAYER)
    }

    fn image_for(&self, arch: &str, layers: &[Vec<u8>], kind: &str) -> Value {
        let config = json!({"os": "linux", "architecture": arch, "config": {"Entrypoint": ["/bin/app"]}});
        let config = serde_json::to_vec(&config).unwrap();
        self.blob(&config);
        let all: Vec<Value> = layers.iter().map(|layer| points_at(layer, kind)).collect();
        for layer in layers {
            self.blob(layer);
        }
        let config = points_at(&config, "application/vnd.oci.image.config.v1+json");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": all}).to_string();
        self.blob(manifest.as_bytes());
        points_at(manifest.as_bytes(), MANIFEST)
    }

    fn index(&self, manifests: &[Value]) {
        let text = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        fs::write(self.path("image/index.json"), text).unwrap();
    }

    fn fill(&self, source: &str, options: &Options) -> Result<Program, String> {
        let source: Source = source.parse().map_err(|error: SourceError| error.to_string())?;
        let target = self.path("tree");
        let _ = fs::remove_dir_all(&target);
        let filled = sources::fill(&source, options, &self.places, &target, &(), &Cancel::default());
        assert!(!self.path("tree.image").exists());
        match filled {
            Ok(filled) => Ok(filled.program.expect("a program")),
            Err(error) => {
                // Every hint is for people.
                assert!(error.hints().iter().all(|hint| !hint.contains('\n')));
                Err(error.to_string())
            }
        }
    }

    fn layout(&self, ending: &str) -> String {
        format!("oci:{}{ending}", self.path("image").display())
    }

    fn has(&self, names: &[&str]) {
        let mut found = Vec::new();
        for directory in ["", "etc/"] {
            let entries = fs::read_dir(self.path("tree").join(directory)).unwrap();
            found.extend(entries.map(|entry| format!("{directory}{}", entry.unwrap().file_name().to_str().unwrap())));
        }
        found.sort();
        assert_eq!(found, names);
    }
}

fn for_arch(arch: &str) -> Options {
    let image = ImageOptions {
        arch: Some(arch.to_owned()),
        ..ImageOptions::default()
    };
    Options {
        image,
        ..Options::default()
    }
}

const STACKED: [&str; 4] = ["bin", "etc", "etc/b", "usr"];

#[test]
fn layers_of_all_kinds_are_stacked() {
    let zstd = zstd::encode_all(&upper()[..], 1).unwrap();
    for top in [upper(), gzip(&upper()), zstd] {
        let scene = Scene::new();
        scene.index(&[scene.image(&[gzip(&base()), top])]);
        let program = scene.fill(&scene.layout(""), &Options::default()).unwrap();
        scene.has(&STACKED);
        let root = Root::open(&scene.path("tree")).unwrap();
        assert_eq!(program.runs(&root).unwrap(), Runs::Program);
    }
}

/// The longer digest of a blob, which is put there by it.
fn long_blob(scene: &Scene, bytes: &[u8], kind: &str) -> Value {
    let digest = Digest::Sha512([0; 64]).of_kind(bytes);
    fs::create_dir_all(scene.path("image/blobs/sha512")).unwrap();
    fs::write(scene.path(&format!("image/blobs/sha512/{}", digest.hex())), bytes).unwrap();
    with(points_at(bytes, kind), "digest", json!(digest.to_string()))
}

/// An image all of whose parts are known by longer digests.
fn long_image(scene: &Scene) -> Value {
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/bin/app"]}}).to_string();
    let config = long_blob(scene, config.as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layers = [gzip(&base()), upper()].map(|layer| long_blob(scene, &layer, LAYER));
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    long_blob(scene, manifest.as_bytes(), MANIFEST)
}

#[test]
fn longer_digests_are_checked_as_well() {
    let scene = Scene::new();
    let image = long_image(&scene);
    scene.index(std::slice::from_ref(&image));
    scene.fill(&scene.layout(""), &Options::default()).unwrap();
    scene.has(&STACKED);
    // A layer, and the manifest, with another bit.
    let layer = Digest::Sha512([0; 64]).of_kind(&upper());
    let manifest = image["digest"].as_str().unwrap().replace(':', "/");
    for (path, what) in [
        (format!("sha512/{}", layer.hex()), "layer 2 of 2"),
        (manifest, "the manifest"),
    ] {
        let path = scene.path("image/blobs").join(path);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = scene.fill(&scene.layout(""), &Options::default()).unwrap_err();
        let said = format!("its SHA-512 sum is {}, not ", layer.of_kind(&bytes).hex());
        assert!(error.starts_with(what) && error.contains(&said), "{error}");
        bytes[100] ^= 1;
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn one_of_several_is_chosen_by_tag_and_machine() {
    let scene = Scene::new();
    let for_one = |arch: &str, name: &str| {
        let image = scene.image_for(arch, &[base(), layer(&[(name, "")])], LAYER);
        with(image, "platform", json!({"os": "linux", "architecture": arch}))
    };
    let tagged =
        |image: Value, tag: &str| with(image, "annotations", json!({"org.opencontainers.image.ref.name": tag}));
    let inner =
        json!({"schemaVersion": 2, "manifests": [for_one("arm64", "on-arm"), for_one("amd64", "on-amd")]}).to_string();
    scene.blob(inner.as_bytes());
    let nested = points_at(inner.as_bytes(), "application/vnd.oci.image.index.v1+json");
    scene.index(&[tagged(nested, "multi:1"), tagged(for_one("amd64", "plain"), "one")]);
    let is_there = |name: &str| scene.path("tree").join(name).exists();
    scene.fill(&scene.layout(":multi:1"), &for_arch("arm64")).unwrap();
    assert!(is_there("on-arm"));
    scene.fill(&scene.layout(":multi:1"), &for_arch("amd64")).unwrap();
    assert!(is_there("on-amd"));
    scene.fill(&scene.layout(":one"), &for_arch("amd64")).unwrap();
    assert!(is_there("plain"));
    let image = scene.layout("");
    for (ending, arch, message) in [
        (
            "",
            "amd64",
            format!("'{image}' has several images: it has 'multi:1' and 'one'"),
        ),
        (
            ":two",
            "amd64",
            format!("'{image}:two' has no image 'two': it has 'multi:1' and 'one'"),
        ),
        (
            ":multi:1",
            "riscv64",
            format!("'{image}:multi:1' is not for linux/riscv64: it is for 'linux/arm64' and 'linux/amd64'"),
        ),
    ] {
        assert_eq!(scene.fill(&scene.layout(ending), &for_arch(arch)).unwrap_err(), message);
    }
    // Of several for this machine without tags too little is known.
    scene.index(&[scene.image(&[base()]), scene.image(&[base(), upper()])]);
    assert!(
        scene
            .fill(&image, &Options::default())
            .unwrap_err()
            .contains("several images")
    );
    // Of one for another only what was asked for is wrong.
    scene.index(&[scene.image_for("s390x", &[base()], LAYER)]);
    scene.fill(&image, &Options::default()).unwrap();
    assert!(
        scene
            .fill(&image, &for_arch("amd64"))
            .unwrap_err()
            .contains("is not for linux/amd64")
    );
}

/// Packs what lies in a directory.
fn pack(directory: &Path, file: &Path) {
    let mut archive = tar::Builder::new(fs::File::create(file).unwrap());
    archive.append_dir_all(".", directory).unwrap();
    archive.finish().unwrap();
}

#[test]
fn archives_are_known_by_what_they_have() {
    let scene = Scene::new();
    scene.index(&[scene.image(&[gzip(&base()), upper()])]);
    let file = scene.path("image.tar");
    pack(&scene.path("image"), &file);
    let compressed = scene.path("image.tar.gz");
    fs::write(&compressed, gzip(&fs::read(&file).unwrap())).unwrap();
    let file = file.display();
    for source in [
        format!("oci-archive:{file}"),
        format!("docker-archive:{file}"),
        file.to_string(),
        compressed.display().to_string(),
    ] {
        scene.fill(&source, &Options::default()).unwrap();
        scene.has(&STACKED);
    }
}

/// What `docker save` made until it made layouts, and `skopeo copy … docker-archive:` makes.
fn saved(scene: &Scene, layers: &[Vec<u8>]) {
    fs::remove_dir_all(scene.path("image")).unwrap();
    fs::create_dir(scene.path("image")).unwrap();
    let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/app"]}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = config.to_string();
    let name = format!("{}.json", Sum::of(config.as_bytes()));
    fs::write(scene.path("image").join(&name), config).unwrap();
    let mut names = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        fs::create_dir(scene.path(&format!("image/{at}"))).unwrap();
        names.push(format!("{at}/layer.tar"));
        fs::write(scene.path("image").join(&names[at]), layer).unwrap();
    }
    let manifest = json!([{"Config": name, "RepoTags": ["docker.io/app:1"], "Layers": names}]);
    fs::write(scene.path("image/manifest.json"), manifest.to_string()).unwrap();
    pack(&scene.path("image"), &scene.path("saved.tar"));
}

#[test]
fn archives_of_docker_save_are_taken() {
    let scene = Scene::new();
    saved(&scene, &[base(), upper()]);
    let file = scene.path("saved.tar").display().to_string();
    for source in [
        file.clone(),
        format!("docker-archive:{file}"),
        format!("docker-archive:{file}:app:1"),
        format!("docker-archive:{file}:1"),
    ] {
        scene.fill(&source, &Options::default()).unwrap();
        scene.has(&STACKED);
    }
    let error = scene
        .fill(&format!("docker-archive:{file}:2"), &Options::default())
        .unwrap_err();
    assert!(error.ends_with("has no image '2': it has 'docker.io/app:1'"), "{error}");
    // Another layer than its configuration says.
    fs::write(scene.path("image/1/layer.tar"), base()).unwrap();
    pack(&scene.path("image"), &scene.path("saved.tar"));
    let error = scene.fill(&file, &Options::default()).unwrap_err();
    assert!(
        error.contains("layer 2 of 2 of ") && error.contains("is not what it should be"),
        "{error}"
    );
    fs::remove_file(scene.path("image/1/layer.tar")).unwrap();
    pack(&scene.path("image"), &scene.path("saved.tar"));
    let error = scene.fill(&file, &Options::default()).unwrap_err();
    assert!(
        error.contains("layer 2 of 2 of ") && error.contains("is missing"),
        "{error}"
    );
}

#[test]
fn archives_of_roots_stay_what_they_are() {
    let scene = Scene::new();
    let tree = scene.path("root");
    fs::create_dir_all(tree.join("usr")).unwrap();
    for name in ["oci-layout", "index.json", "manifest.json"] {
        fs::write(tree.join(name), "{}").unwrap();
    }
    assert!(!is_image(&tree));
    fs::remove_dir(tree.join("usr")).unwrap();
    assert!(is_image(&tree));
    fs::create_dir(scene.path("empty")).unwrap();
    pack(&scene.path("empty"), &scene.path("none.tar"));
    let none = format!("oci-archive:{}", scene.path("none.tar").display());
    let error = scene.fill(&none, &Options::default()).unwrap_err();
    assert!(error.contains("is no archive of an image"), "{error}");
}
