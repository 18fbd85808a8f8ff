use super::*;
use crate::sources::SourceError;
use crate::sources::tarball::TarballError;

fn request(network: Network, settings: &[&str]) -> Request {
    Request {
        name: "web".parse().unwrap(),
        source: "template:busybox".parse().unwrap(),
        options: Options::default(),
        guest: GuestOptions::default(),
        network,
        settings: settings
            .iter()
            .map(|text| crate::nspawn::assignment::parse_assignment(text).unwrap())
            .collect(),
        files: Vec::new(),
        scripts: Vec::new(),
        scripts_have_network: false,
    }
}

#[test]
fn files_to_copy_are_named_twice() {
    let read: FileCopy = "./a:b:/srv/".parse().unwrap();
    assert_eq!((read.source, read.target), ("./a:b".into(), "/srv/".into()));
    for text in ["", "a", "a:", ":/b", "a:b"] {
        text.parse::<FileCopy>().unwrap_err();
    }
}

#[test]
fn settings_say_only_what_differs_from_the_template() {
    assert_eq!(
        settings(&request(Network::Veth, &[]), None, &Settled::default()).unwrap(),
        b""
    );
    let text = settings(
        &request(Network::Bridge("br0".into()), &["Exec.Hostname=x"]),
        Some("SIGUSR2"),
        &Settled::default(),
    )
    .unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "# Settings of machine 'web', see systemd.nspawn(5).\n\n[Exec]\nKillSignal=SIGUSR2\nHostname=x\n\n[Network]\nBridge=br0\n"
    );
}

#[test]
fn what_the_guest_was_given_the_host_does_not_replace() {
    let mut request = request(Network::Host, &[]);
    request.guest.timezone = Some("UTC".parse().unwrap());
    request.guest.dns = vec!["9.9.9.9".parse().unwrap()];
    let text = String::from_utf8(settings(&request, None, &Settled::default()).unwrap()).unwrap();
    assert!(text.contains("[Exec]\nTimezone=off\nResolvConf=off\n"), "{text}");
    request.network = Network::Veth;
    let text = String::from_utf8(settings(&request, None, &Settled::default()).unwrap()).unwrap();
    assert!(text.ends_with("[Exec]\nTimezone=off\n"), "{text}");
}

#[test]
fn settings_of_another_machine_keep_a_name_in_use_wherever_nspawn_looks() {
    let root = tempfile::tempdir().unwrap();
    let places = Places {
        machines: root.path().join("machines"),
        settings: root.path().join("etc"),
        runtime_settings: root.path().join("run"),
        ..Places::default()
    };
    let name = "web".parse().unwrap();
    is_free(&name, &places).unwrap();
    for directory in [&places.settings, &places.runtime_settings, &places.machines] {
        fs::create_dir(directory).unwrap();
        let file = directory.join("web.nspawn");
        fs::write(&file, "[Exec]\nBoot=no\n").unwrap();
        let error = is_free(&name, &places).unwrap_err();
        assert!(
            matches!(&error, OpError::InUse { by, .. } if by.contains(&shown(&file))),
            "{error}"
        );
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn what_is_no_image_is_not_to_be_removed_as_one() {
    let root = tempfile::tempdir().unwrap();
    let machines = root.path().join("machines");
    let places = Places {
        machines: machines.clone(),
        settings: root.path().join("etc"),
        runtime_settings: root.path().join("run"),
        ..Places::default()
    };
    fs::create_dir_all(machines.join("tree")).unwrap();
    fs::write(machines.join("plain"), "hi").unwrap();
    fs::write(machines.join("disk.raw"), "hi").unwrap();
    std::os::unix::fs::symlink("/nowhere", machines.join("dangling")).unwrap();
    std::os::unix::fs::symlink("tree", machines.join("link")).unwrap();
    let error = |name: &str| is_free(&name.parse().unwrap(), &places).unwrap_err();
    for name in ["tree", "link", "disk"] {
        assert!(error(name).hints()[0].contains("machinist remove"), "{name}");
    }
    for name in ["plain", "dangling"] {
        let path = machines.join(name).display().to_string();
        let error = error(name);
        let told = format!("cannot create machine '{name}': file '{path}' exists already");
        assert_eq!(error.to_string(), told);
        assert!(error.hints()[0].starts_with(&format!("it is no image: move it away with `mv {path} /root/`")));
    }
}

#[test]
fn drop_ins_of_the_unit_keep_a_name_in_use() {
    let root = tempfile::tempdir().unwrap();
    let places = Places {
        machines: root.path().join("machines"),
        settings: root.path().join("nspawn"),
        runtime_settings: root.path().join("run"),
        units: root.path().join("system"),
        other_units: vec![root.path().join("transient")],
        control: root.path().join("system.control"),
        runtime_control: root.path().join("run-system.control"),
        ..Places::default()
    };
    let name = "web".parse().unwrap();
    for directory in ["system", "system.control", "transient"] {
        let directory = root.path().join(directory).join("systemd-nspawn@web.service.d");
        fs::create_dir_all(&directory).unwrap();
        is_free(&name, &places).unwrap();
        let file = directory.join("50-CPUWeight.conf");
        fs::write(&file, "[Service]\nCPUWeight=7\n").unwrap();
        let error = is_free(&name, &places).unwrap_err();
        let told = format!(
            "cannot create machine 'web': unit drop-in '{}' exists already",
            file.display()
        );
        assert_eq!(error.to_string(), told);
        let mv = format!("`mv {} /root/ && systemctl daemon-reload`", directory.display());
        assert!(error.hints()[0].contains(&mv), "{:?}", error.hints());
        fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn errors_name_no_hidden_directory() {
    let machines = Path::new("/var/lib/machines");
    let told = |error: OpError| {
        let error = in_users_words(error, &"root.tar".parse().unwrap(), machines);
        [vec![error.to_string()], error.hints()].concat().join("; ")
    };
    let staging = machines.join(".#machinist-create-web-x1y2z3");
    let full = SourceError::DiskFull { path: staging.clone() };
    assert!(told(full.into()).contains("see `df -h /var/lib/machines`"));
    let flag = SourceError::MountFlag {
        path: staging.clone(),
        flag: "nosuid",
    };
    assert!(told(flag.into()).contains("remount,suid $(findmnt -no TARGET -T /var/lib/machines)`"));
    let broken = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let unpacking = TarballError::Io {
        action: "write",
        path: staging.join("tree/usr/bin/x"),
        source: broken(),
    };
    assert_eq!(told(SourceError::from(unpacking).into()), "cannot write 'usr/bin/x'");
    let record = OpError::path("write", staging.join("record.json"))(broken());
    assert_eq!(told(record), "cannot write '/var/lib/machines'");
    let unfit = GuestError::NoUsr {
        path: staging.join("tree"),
        only: Some("root fs".into()),
    };
    assert_eq!(
        told(unfit.into()),
        "'root.tar' is no root filesystem: it has no directory 'usr'; its files lie below 'root fs/': name it with \
         `--subtree 'root fs'`"
    );
    let other = OpError::path("read", "/var/lib/machines/other/x")(broken());
    assert_eq!(told(other), "cannot read '/var/lib/machines/other/x'");
}

#[test]
fn a_plan_says_whether_settings_are_written() {
    let told = |source: &str, network, settings: &[&str]| {
        let mut request = request(network, settings);
        request.source = source.parse().unwrap();
        describe_settings(&request, Path::new("web.nspawn"))
    };
    assert_eq!(told("template:busybox", Network::Veth, &[]), "write 'web.nspawn'");
    assert!(told("debian:trixie", Network::Veth, &[]).starts_with("write no .nspawn file"));
    assert_eq!(told("debian:trixie", Network::Host, &[]), "write 'web.nspawn'");
    assert_eq!(told("a.tar", Network::Veth, &["Exec.Hostname=x"]), "write 'web.nspawn'");
    assert_eq!(
        told("a.tar", Network::Veth, &[]),
        "write 'web.nspawn' unless its init is systemd"
    );
}

#[test]
fn what_the_user_sets_wins() {
    let text = settings(
        &request(Network::Veth, &["Exec.KillSignal=SIGKILL"]),
        Some("SIGUSR2"),
        &Settled::default(),
    )
    .unwrap();
    assert!(
        String::from_utf8(text)
            .unwrap()
            .ends_with("[Exec]\nKillSignal=SIGKILL\n")
    );
}
