//! Images that are not what they say to be, and what is left of them: nothing.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::oci::images;
use crate::sources::{Work, is_nowhere, sum_of};
use crate::support::{Guest, machinist, run, sh, shared, wait_until};
use crate::web::{Page, Web};

/// A copy of the layout with one image, its manifest, and where its layers lie.
struct Layout {
    work: Work,
    manifest: Value,
    layers: Vec<PathBuf>,
}

impl Layout {
    fn new() -> Self {
        let work = Work::new("obad");
        let place = work.0.join("images");
        run(
            "cp",
            [
                "-a",
                &images().join("images").to_string_lossy(),
                &place.to_string_lossy(),
            ],
        )
        .ok();
        let parsed = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |digest: &Value| place.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        let mut index = parsed(place.join("index.json"));
        let all = index["manifests"].as_array_mut().unwrap();
        all.retain(|one| one["annotations"]["org.opencontainers.image.ref.name"] == "app");
        let manifest = parsed(blob(&all[0]["digest"]));
        fs::write(place.join("index.json"), index.to_string()).unwrap();
        let layers = manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| blob(&layer["digest"]))
            .collect();
        Self { work, manifest, layers }
    }

    fn source(&self) -> String {
        format!("oci:{}", self.work.file("images"))
    }

    /// Puts other bytes in the place of the upper layer, with a manifest that says so.
    fn with_layer(&self, file: &str) {
        let put = |from: &str| {
            let sum = sum_of(from);
            fs::copy(from, self.work.0.join("images/blobs/sha256").join(&sum)).unwrap();
            (format!("sha256:{sum}"), fs::metadata(from).unwrap().len())
        };
        let (digest, size) = put(file);
        let mut manifest = self.manifest.clone();
        manifest["layers"][1] =
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size});
        let path = self.work.file("manifest");
        fs::write(&path, manifest.to_string()).unwrap();
        let (digest, size) = put(&path);
        let index = json!({"schemaVersion": 2, "manifests": [{"digest": digest, "size": size}]});
        fs::write(self.work.0.join("images/index.json"), index.to_string()).unwrap();
    }
}

#[test]
fn an_image_with_a_bad_part_leaves_nothing() {
    let _host = shared();
    let guest = Guest::new("obad");
    let refused = |layout: &Layout, message: &str| {
        machinist(["create", &guest.name, &layout.source()])
            .status(1)
            .stderr_has(message);
        is_nowhere(&guest);
        machinist(["run", &layout.source(), "--", "true"])
            .status(125)
            .stderr_has(message);
    };
    let layout = Layout::new();
    let mut bytes = fs::read(&layout.layers[1]).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&layout.layers[1], &bytes).unwrap();
    refused(&layout, "layer 2 of 2 of ");
    fs::write(&layout.layers[1], &bytes[..last]).unwrap();
    refused(&layout, &format!("has {last} bytes, and not the {}", last + 1));
    fs::remove_file(&layout.layers[1]).unwrap();
    refused(&layout, "is missing: there is no sha256:");
    // Layers that would hide the root, reach out, or break off.
    let make = "cd \"$1\"; mkdir d; touch d/.wh.. valuable; tar -C d -cf root.tar .wh..
        tar -Pcf out.tar --transform 's,valuable,../../valuable,' valuable
        head -c 5000 /dev/zero >large; tar -cf large.tar large; head -c 2000 large.tar >cut.tar";
    sh(make, [&layout.work.0]).ok();
    for (file, message) in [
        ("root.tar", "archive entry '.wh..' is no valid whiteout"),
        ("out.tar", "leads outside of the machine"),
        ("cut.tar", "archive 'layer 2 of 2' is truncated"),
    ] {
        layout.with_layer(&layout.work.file(file));
        refused(&layout, message);
    }
}

#[test]
fn a_registry_that_breaks_off_leaves_nothing_when_interrupted() {
    let _host = shared();
    let (layout, web, guest) = (Layout::new(), Web::new(), Guest::new("obad"));
    for layer in &layout.layers {
        let name = layer.file_name().unwrap().to_string_lossy().into_owned();
        let page = Page {
            cut: (100, 99),
            ..Page::new(fs::read(layer).unwrap())
        };
        web.put(&format!("/v2/a/blobs/sha256:{name}"), page);
    }
    let digest = layout.manifest["config"]["digest"].as_str().unwrap();
    let config = layout.work.0.join("images/blobs").join(digest.replace(':', "/"));
    web.put(&format!("/v2/a/blobs/{digest}"), Page::new(fs::read(config).unwrap()));
    web.put("/v2/a/manifests/latest", Page::new(layout.manifest.to_string()));
    let image = format!("docker://{}/a", web.url("").trim_start_matches("http://"));
    let running = machinist(["create", &guest.name, &image, "--tls-verify=no", "--no-cache"]).spawn();
    wait_until("it goes on with a layer", || running.has_said("downloading again"));
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().status, 130);
    is_nowhere(&guest);
}
