//! What is wrong with an image is told, and nothing is touched outside of its tree.

use super::*;

#[track_caller]
fn refused(scene: &Scene, message: &str) {
    let error = scene.fill(&scene.layout(""), &Options::default()).unwrap_err();
    assert!(error.contains(message), "no {message:?} in {error:?}");
}

#[test]
fn parts_that_are_not_what_they_should_be() {
    let scene = Scene::new();
    let image = scene.image(&[base(), upper()]);
    scene.index(std::slice::from_ref(&image));
    let top = scene.path(&format!("image/blobs/sha256/{}", Sum::of(&upper())));
    // A layer of the right length with another bit, one that is cut off, none.
    let mut other = upper();
    other[600] ^= 1;
    fs::write(&top, &other).unwrap();
    refused(&scene, "layer 2 of 2 of ");
    refused(
        &scene,
        &format!("its SHA-256 sum is {}, not {}", Sum::of(&other), Sum::of(&upper())),
    );
    fs::write(&top, &upper()[..1000]).unwrap();
    refused(
        &scene,
        &format!("has 1000 bytes, and not the {} that stand in the image", upper().len()),
    );
    fs::remove_file(&top).unwrap();
    refused(&scene, "is missing: there is no sha256:");
    // Out of the layout, by a link or by its name.
    fs::write(scene.path("outside"), upper()).unwrap();
    std::os::unix::fs::symlink("../../../outside", &top).unwrap();
    assert!(scene.fill(&scene.layout(""), &Options::default()).is_err());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        scene.path("fifo"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    fs::remove_file(&top).unwrap();
    fs::rename(scene.path("fifo"), &top).unwrap();
    assert!(scene.fill(&scene.layout(""), &Options::default()).is_err());
    for digest in ["sha256:../../../outside", "sha512:00", "", "sha256:"] {
        scene.index(&[with(image.clone(), "digest", json!(digest))]);
        refused(&scene, "has ");
        assert!(!scene.path("tree").exists());
    }
    // A manifest that its index has another sum of, or another length.
    scene.index(&[with(image.clone(), "size", json!(3))]);
    refused(&scene, "the manifest of ");
    let path = scene.path(&format!(
        "image/blobs/{}",
        image["digest"].as_str().unwrap().replace(':', "/")
    ));
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("schemaVersion\":2", "schemaVersion\":3");
    fs::write(&path, text).unwrap();
    scene.index(&[image]);
    refused(&scene, "the manifest of ");
    refused(&scene, "is not what it should be");
}

#[test]
fn documents_that_cannot_be_understood() {
    let scene = Scene::new();
    let write = |text: &str| fs::write(scene.path("image/index.json"), text).unwrap();
    for (text, message) in [
        ("{}", "is neither an index nor a manifest"),
        ("{", "cannot be understood"),
        (r#"{"manifests":[]}"#, "lists no image"),
        (r#"{"manifests":[{"digest":"x","size":"y"}]}"#, "cannot be understood"),
    ] {
        write(text);
        refused(&scene, message);
    }
    write(&" ".repeat(5 << 20));
    assert!(scene.fill(&scene.layout(""), &Options::default()).is_err());
    fs::remove_file(scene.path("image/index.json")).unwrap();
    refused(&scene, "it has no file 'index.json'");
    fs::write(scene.path("image/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    refused(&scene, "it is of version '2.0.0'");
    fs::remove_file(scene.path("image/oci-layout")).unwrap();
    refused(&scene, "is no OCI layout: it has no file 'oci-layout'");
    // Indexes in each other without an end cannot be, but very deep ones.
    let scene = Scene::new();
    let mut inner = scene.image(&[base()]);
    for _ in 0..9 {
        let index = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
        scene.blob(index.as_bytes());
        inner = points_at(index.as_bytes(), "application/vnd.oci.image.index.v1+json");
    }
    scene.index(&[inner]);
    refused(&scene, "indexes deep");
    let scene = Scene::new();
    scene.index(&[scene.image_for("amd64", &[base()], "text/html")]);
    refused(&scene, "of an unknown kind ('text/html')");
}

#[test]
fn layers_that_would_do_harm() {
    for name in [".wh.", ".wh..", ".wh...", "./.wh..", "/.wh.usr"] {
        let scene = Scene::new();
        scene.index(&[scene.image(&[base(), layer(&[(name, "")])])]);
        assert!(scene.fill(&scene.layout(""), &Options::default()).is_err(), "{name}");
    }
    let scene = Scene::new();
    scene.index(&[scene.image(&[base(), layer(&[(".wh..", "")])])]);
    refused(&scene, "archive entry '.wh..' is no valid whiteout");
    // Hides everything, and has nothing.
    let scene = Scene::new();
    scene.index(&[scene.image(&[base(), layer(&[(".wh..wh..opq", "")])])]);
    refused(&scene, "is empty: its layers leave no files");
    let scene = Scene::new();
    scene.index(&[scene.image(&[])]);
    refused(&scene, "is empty");
    for (bytes, message) in [
        (gzip(&base())[..100].to_vec(), "archive 'layer 1 of 1' is truncated"),
        (base()[..1400].to_vec(), "archive 'layer 1 of 1' is truncated"),
        (b"<html>".to_vec(), "'layer 1 of 1' is not a tar archive"),
    ] {
        let scene = Scene::new();
        scene.index(&[scene.image(&[bytes])]);
        refused(&scene, message);
    }
    let scene = Scene::new();
    fs::write(scene.path("valuable"), "x").unwrap();
    scene.index(&[scene.image(&[base(), layer(&[("../valuable", "y")])])]);
    refused(&scene, "leads outside");
    assert_eq!(fs::read_to_string(scene.path("valuable")).unwrap(), "x");
}
