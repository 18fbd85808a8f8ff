//! Layers upon layers: what they hide, and what they replace.

use super::*;

/// Layers of which the first lies at the bottom.
fn stacked(layers: Vec<Archive>) -> Scene {
    let scene = Scene::new();
    let mut depth = Depth::Lowest;
    for layer in layers {
        scene.extract_layer(&layer.end(), depth).unwrap();
        depth = Depth::Upper;
    }
    scene
}

/// All that is there, sorted.
fn names(scene: &Scene) -> Vec<String> {
    fn list(at: &std::path::Path, name: &str, all: &mut Vec<String>) {
        for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
            let name = format!("{name}{}", entry.file_name().to_str().unwrap());
            let is_directory = entry.file_type().unwrap().is_dir();
            all.push(name.clone());
            if is_directory {
                list(&entry.path(), &format!("{name}/"), all);
            }
        }
    }
    let mut all = Vec::new();
    list(&scene.target, "", &mut all);
    all.sort();
    all
}

fn base() -> Archive {
    Archive::default()
        .directory("d/")
        .directory("d/e/")
        .file("d/e/deep", "low")
        .file("d/f", "low")
        .file("x", "low")
        .symlink("to-d", "d")
}

#[test]
fn whiteouts_hide_what_lies_below_and_nothing_of_their_own_layer() {
    let file = |archive: Archive, name: &str| archive.file(name, "");
    let scene = stacked(vec![
        base(),
        file(file(Archive::default(), ".wh.x"), "d/.wh.e").file("d/g", "up"),
    ]);
    assert_eq!(names(&scene), ["d", "d/f", "d/g", "to-d"]);
    // Whichever comes first.
    for order in [["x", ".wh.x"], [".wh.x", "x"]] {
        let upper = order.iter().fold(Archive::default(), |archive, name| {
            archive.file(name, if *name == "x" { "up" } else { "" })
        });
        let scene = stacked(vec![base(), upper]);
        assert_eq!(scene.read("x"), "up");
    }
    // A directory that is made anew has nothing of the old one.
    for order in [["d/", ".wh.d"], [".wh.d", "d/"]] {
        let upper = order.iter().fold(Archive::default(), |archive, name| match *name {
            "d/" => archive.directory("d/").directory("d/e/").file("d/e/new", "up"),
            name => archive.file(name, ""),
        });
        let scene = stacked(vec![base(), upper]);
        assert_eq!(names(&scene), ["d", "d/e", "d/e/new", "to-d", "x"]);
    }
    // What is not there, or not a directory, is hidden already. A whiteout at the bottom hides nothing.
    let upper = ["none/.wh.a", "x/.wh.b", "none/.wh..wh..opq", ".wh..wh.plnk", ".wh.none"];
    let upper = upper.into_iter().fold(Archive::default(), file);
    assert_eq!(names(&stacked(vec![base(), upper])), names(&stacked(vec![base()])));
    assert_eq!(
        names(&stacked(vec![base().file(".wh.x", "")])),
        names(&stacked(vec![base()]))
    );
}

#[test]
fn an_opaque_directory_hides_the_layers_below_wherever_it_says_so() {
    for marker_is_first in [true, false] {
        let marker = |archive: Archive, here: bool| {
            if here {
                archive.file("d/.wh..wh..opq", "")
            } else {
                archive
            }
        };
        let upper = marker(Archive::default().directory("d/"), marker_is_first);
        let upper = marker(upper.directory("d/e/").file("d/e/new", "up"), !marker_is_first);
        let scene = stacked(vec![base(), upper]);
        assert_eq!(names(&scene), ["d", "d/e", "d/e/new", "to-d", "x"], "{marker_is_first}");
    }
    let scene = stacked(vec![
        base(),
        Archive::default().file(".wh..wh..opq", "").file("only", ""),
    ]);
    assert_eq!(names(&scene), ["only"]);
    // By way of a link of a lower layer, as a guest would see it.
    let scene = stacked(vec![base(), Archive::default().file("to-d/.wh..wh..opq", "")]);
    assert_eq!(names(&scene), ["d", "to-d", "x"]);
}

#[test]
fn kinds_change_from_layer_to_layer() {
    let scene = stacked(vec![
        base(),
        Archive::default()
            .file("d", "a file")
            .directory("x/")
            .file("x/y", "")
            .directory("to-d/"),
        Archive::default().symlink("x", "d").directory("d/").file("d/z", "back"),
        Archive::default().hard_link("d/twin", "d/z").hard_link("twin", "x/z"),
    ]);
    assert_eq!(names(&scene), ["d", "d/twin", "d/z", "to-d", "twin", "x"]);
    assert!(scene.target.join("x").is_symlink() && !scene.target.join("to-d").is_symlink());
    assert_eq!(fs::metadata(scene.target.join("twin")).unwrap().nlink(), 3);
    // A file that is replaced leaves the other names of the old one alone.
    let scene = stacked(vec![base().hard_link("same", "x"), Archive::default().file("x", "up")]);
    assert_eq!(
        (scene.read("x"), scene.read("same")),
        ("up".to_owned(), "low".to_owned())
    );
    // Within one layer it is a mistake, as in any archive.
    let scene = stacked(vec![base()]);
    let layer = Archive::default().directory("d/").file("d", "");
    let error = scene.extract_layer(&layer.end(), Depth::Upper).unwrap_err();
    assert!(error.to_string().contains("would replace a directory"), "{error}");
}

#[test]
fn what_would_hide_more_than_a_name_is_refused() {
    for name in [".wh.", ".wh..", ".wh...", "./.wh..", "d/.wh...", ".wh.d/e"] {
        let scene = stacked(vec![base()]);
        let before = names(&scene);
        let error = scene.extract_layer(&Archive::default().file(name, "").end(), Depth::Upper);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("is no valid whiteout"), "{name}: {error}");
        assert_eq!(names(&scene), before);
    }
    // Links that lead out hide nothing outside.
    let out = || base().symlink("out", "../etc").symlink("abs", "/etc");
    for name in [
        "out/.wh.passwd",
        "out/.wh..wh..opq",
        "../etc/.wh.passwd",
        "/etc/.wh.passwd",
    ] {
        let scene = stacked(vec![out()]);
        scene
            .extract_layer(&Archive::default().file(name, "").end(), Depth::Upper)
            .unwrap_err();
    }
    let scene = stacked(vec![out(), Archive::default().file("abs/.wh.passwd", "")]);
    assert!(scene.target.join("d/f").exists());
}

#[test]
fn a_layer_may_end_without_a_marker_and_nowhere_else() {
    let scene = Scene::new();
    let layer = Archive::default().directory("d/").file("d/x", "last").0;
    scene.extract_layer(&layer, Depth::Lowest).unwrap();
    assert_eq!(names(&scene), ["d", "d/x"]);
    let cut = scene
        .extract_layer(&layer[..layer.len() - 1], Depth::Upper)
        .unwrap_err();
    assert!(cut.to_string().ends_with("inside of entry 'd/x'"), "{cut}");
    let error = scene.extract(&layer).unwrap_err().to_string();
    assert!(error.ends_with("ends without an end marker"), "{error}");
}
