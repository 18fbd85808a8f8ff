//! export and import of images in OCI layouts: for any tool that reads them, and the same machine again.

use std::fs;

use crate::create::traces;
use crate::export::{Shelf, listing};
use crate::support::{Guest, There, agree, machinist, run, sh, shared};

/// What a machine may have in its tree.
const KINDS: &str = r#"cd "$1"; mkdir k; cd k; echo data >one; ln one two; mkfifo fifo; truncate -s 4M sparse; echo >>sparse
    ln -s /etc/shadow link; cp /bin/busybox cap; setcap cap_net_raw+ep cap; setfattr -n user.a -v ho one
    mkdir d; chmod 2775 d; chown 7:8 d; chmod 4750 two; touch -d '2001-02-03 04:05:06' one d
    printf x >"$(printf 'b\377d')"; touch "$(head -c 150 /dev/zero | tr '\0' n)""#;

/// What umoci makes of an image, and whether that is what is in the machine.
const UNPACK: &str = r#"umoci unpack --image "$1" "$2/bundle" >/dev/null
    tell() { cd "$1"; find . -printf '%p %M %n %U:%G %l\n' | sort; find . -type f -exec sha256sum {} + | sort -k2; getcap -r .; }
    diff <(tell "$2/bundle/rootfs") <(tell "$3")"#;

/// The configuration of an image.
fn config(layout: &str, digest: &str) -> serde_json::Value {
    let blob = |digest: &str| -> serde_json::Value {
        let path = format!("{layout}/blobs/{}", digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    blob(blob(digest)["config"]["digest"].as_str().unwrap())
}

#[test]
fn a_machine_in_a_layout_is_an_image_and_the_same_machine() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("exo"), Guest::new("exo2"));
    let (name, shelf) = (guest.name.as_str(), Shelf::new(&guest));
    let inside = "[Exec]\nKillSignal=SIGUSR2\nEnvironment=\"A=b c\"\n";
    guest.write_settings(&format!("{inside}[Network]\nPort=tcp:8080:80\n"));
    machinist(["limit", name, "tasks=77"]).ok();
    sh(KINDS, [guest.image()]).ok();
    let before = listing(&guest.image());
    let layout = shelf.path("layout");
    let image = |tag: &str| format!("oci:{layout}:{tag}");
    let steps = machinist(["export", name, &image("web"), "--dry-run"]).ok();
    assert!(
        steps.stdout.contains("name the image 'web'") && shelf.names().is_empty(),
        "{steps:?}"
    );
    let export = |to: &str| machinist(["export", "--force", name, to, "--json"]).ok().json()[0].clone();
    let row = export(&image("web"));
    assert_eq!((&row["tag"], &row["path"]), (&"web".into(), &layout.as_str().into()));
    let digest = row["digest"].as_str().unwrap();
    assert_eq!(shelf.names(), ["layout"]);
    // The same machine is the same image, however often.
    let count = || fs::read_dir(format!("{layout}/blobs/sha256")).unwrap().count();
    assert_eq!(count(), 6);
    assert_eq!(export(&image("web"))["digest"], digest);
    assert_eq!(export(&format!("oci:{}", shelf.path("other")))["digest"], digest);
    assert_eq!(count(), 6);
    let config = config(&layout, digest);
    assert_eq!(
        config["config"],
        serde_json::json!({
            "Entrypoint": ["/sbin/init"], "StopSignal": "SIGUSR2", "Env": ["A=b c"], "ExposedPorts": {"80/tcp": {}},
        })
    );
    assert_eq!(
        (&config["os"], &config["created"]),
        (&"linux".into(), &serde_json::Value::Null)
    );
    // Others read it.
    run("umoci", ["ls", "--layout", &shelf.path("other")])
        .ok()
        .stdout_is("latest\n");
    sh(
        UNPACK,
        [
            format!("{layout}:web"),
            shelf.path(""),
            guest.image().display().to_string(),
        ],
    )
    .ok();
    let seen = run("skopeo", ["inspect", &image("web")]).ok().json();
    assert_eq!(seen["Digest"], digest);
    // It checks each blob that it copies.
    let copy = format!("oci-archive:{}:web", shelf.path("copy.tar"));
    run("skopeo", ["copy", "--quiet", "--insecure-policy", &image("web"), &copy]).ok();
    machinist(["create", &other.name, &copy]).ok();
    machinist(["remove", "-y", &other.name]).ok();
    machinist(["create", &other.name, &format!("oci:{}", shelf.path("other"))]).ok();
    other.start();
    machinist(["exec", &other.name, "--", "cat", "/k/two"])
        .ok()
        .stdout_is("data\n");
    machinist(["remove", "-y", "--force", &other.name]).ok();
    // Beside it another one, in which only a limit differs, of the machine as it runs.
    machinist(["limit", name, "tasks=88"]).ok();
    guest.write_settings(inside);
    guest.start();
    machinist(["export", name, &image("two"), "--format", "tar.zst"]).ok();
    run("umoci", ["gc", "--layout", &layout]).ok();
    machinist(["import", &image("two"), &other.name, "--new-identity"]).ok();
    assert_eq!(other.property("TasksMax"), "88");
    other.start();
    machinist(["exec", &other.name, "--", "cat", "/k/two"])
        .ok()
        .stdout_is("data\n");

    machinist(["remove", "-y", "--force", name]).ok();
    sh("rm -rf /var/lib/machinist/trash/\"$1\"-*", [name]).ok();
    machinist(["import", &image("web"), "--dry-run"])
        .ok()
        .stdout_has("rename it to");
    assert_eq!(traces(name), Vec::<String>::new());
    let output = machinist(["import", &image("web"), "--json"]).ok();
    let row = output.json()[0].clone();
    assert_eq!((&row["machine"], &row["kind"]), (&name.into(), &"machinist".into()));
    // What reaches beyond it is left out, as of an archive.
    assert!(output.stderr.contains("[Network] Port=tcp:8080:80"), "{output:?}");
    agree(name, There::Stopped);
    assert_eq!(listing(&guest.image()), before);
    assert_eq!(guest.property("TasksMax"), "77");
    guest.start();
}
