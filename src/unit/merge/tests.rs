//! What is merged, and what is told of it.

use serde_json::json;

use super::*;

fn rows(files: &[(&str, &str, Status)], properties: &[(&str, Value)]) -> Vec<String> {
    let files: Vec<UnitFile> = files
        .iter()
        .map(|(path, text, status)| UnitFile {
            path: (*path).to_owned(),
            source: if *path == "/t" {
                Source::Template
            } else {
                Source::DropIn
            },
            document: Document::parse(text.as_bytes()),
            status: status.clone(),
        })
        .collect();
    let properties = properties
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    let unit = Unit {
        systemd: 257,
        need_reload: files
            .iter()
            .any(|file| matches!(file.status, Status::New | Status::Changed)),
        files: &files,
        properties: &properties,
    };
    unit.settings()
        .into_iter()
        .map(|row| {
            let code = row.code.map_or_else(String::new, |code| format!(" {code}"));
            let (path, state) = (row.path(), row.state.as_str());
            format!("{path}={} {} {state}{code}", row.value, row.origin.text())
        })
        .collect()
}

#[test]
fn the_last_file_wins_and_lists_add_up() {
    assert_eq!(
        rows(
            &[
                (
                    "/t",
                    "[Unit]\nAfter=a.service b.service\n[Service]\nTasksMax=10\nDeviceAllow=/dev/a rw\nExecStart=x %i\n",
                    Status::Read
                ),
                (
                    "/d/1",
                    "[Service]\nTasksMax=20\nDeviceAllow=\nDeviceAllow=/dev/b\n",
                    Status::Read
                ),
                (
                    "/d/2",
                    "[Service]\nTasksMax=20\nExecStart=\nExecStart=y %i\n",
                    Status::Read
                ),
            ],
            &[
                ("TasksMax", json!(20)),
                ("DeviceAllow", json!([["/dev/b", "rwm"]])),
                ("ExecStart", json!([["y", ["y", "we b"]]])),
                ("After", json!(["b.service", "a.service"])),
            ]
        ),
        [
            "Unit.After=a.service template:2 in_force",
            "Unit.After=b.service template:2 in_force",
            "Service.TasksMax=20 /d/2:2 in_force",
            "Service.TasksMax=10 template:4 ignored overridden",
            "Service.TasksMax=20 /d/1:2 ignored overridden",
            "Service.DeviceAllow=/dev/a rw template:5 ignored overridden",
            "Service.DeviceAllow=/dev/b /d/1:4 in_force",
            "Service.ExecStart=x %i template:6 ignored overridden",
            "Service.ExecStart=y 'we b' /d/2:4 in_force",
        ]
    );
}

#[test]
fn what_systemd_has_not_read_is_pending() {
    assert_eq!(
        rows(
            &[
                ("/t", "[Service]\nKillMode=mixed\n", Status::Read),
                ("/d/1", "[Service]\nMemoryMax=1G\nKillMode=process\n", Status::Changed),
                ("/d/2", "[Service]\nCPUWeight=50\n", Status::New),
            ],
            &[
                ("MemoryMax", json!(1_048_576)),
                ("KillMode", json!("mixed")),
                ("CPUWeight", json!(u64::MAX))
            ]
        ),
        [
            "Service.KillMode=mixed template:2 in_force",
            "Service.KillMode=process /d/1:3 pending needs-reload",
            "Service.MemoryMax=1M manager in_force",
            "Service.MemoryMax=1G /d/1:2 pending needs-reload",
            "Service.CPUWeight=infinity manager in_force",
            "Service.CPUWeight=50 /d/2:2 pending needs-reload",
        ]
    );
}

#[test]
fn what_is_ignored_is_told() {
    let shadowed = Status::Shadowed("/e/1".to_owned());
    assert_eq!(
        rows(
            &[
                (
                    "/d/1",
                    "[Service]\nMemoryMx=1\nPrivateBPF=yes\nKillMode=nonsense\nnothing\n[Foo]\nA=1\n[X-My]\nB=1\n[Install]\n\
                     WantedBy=x\n[Service\nNice=1\n",
                    Status::Read
                ),
                ("/d/2", "[Service]\nNice=5\n", shadowed),
            ],
            &[("KillMode", json!("mixed"))]
        ),
        [
            "Service.KillMode=mixed manager in_force",
            "Service.KillMode=nonsense /d/1:4 ignored not-taken",
            "Service.MemoryMx=1 /d/1:2 ignored unknown-key",
            "Service.PrivateBPF=yes /d/1:3 ignored key-too-new",
            "Service=nothing /d/1:5 ignored bad-line",
            "Service.Nice=5 /d/2:2 ignored shadowed",
            "Foo.A=1 /d/1:7 ignored unknown-section",
            "Install=[Service /d/1:12 ignored bad-line",
        ]
    );
}

#[test]
fn commands_stand_where_they_are_written() {
    let extended = |path: &str, words: &[&str], flags: &[&str]| json!([path, words, flags, 0, 0, 0, 0, 0, 0, 0]);
    let loaded = json!([
        extended("/bin/true", &["/bin/true", "web"], &["ignore-failure"]),
        extended("/bin/echo", &["/bin/echo", "a"], &["privileged", "no-env-expand"]),
        extended("/bin/echo", &["name", "$X"], &[]),
        extended("/bin/c", &["/bin/c"], &["no-setuid"]),
        extended("/bin/gone", &["/bin/gone"], &["ignore-failure"]),
    ]);
    assert_eq!(
        rows(
            &[
                (
                    "/t",
                    "[Service]\nExecStartPre=/bin/old\nExecStartPre=\nExecStartPre=-/bin/true %i ; :+/bin/echo a\n",
                    Status::Read
                ),
                (
                    "/d/1",
                    "[Service]\nExecStartPre=/bin/x 'open\nExecStartPre=@/bin/echo name $X\nExecStartPre=bin/none\n",
                    Status::Read
                ),
                (
                    "/d/2",
                    "[Service]\nExecStartPre=/bin/new\nExecStartPre=!/bin/c\n",
                    Status::Changed
                ),
                ("/d/3", "[Service]\nExecStartPre=/bin/newer\n", Status::New),
            ],
            &[("ExecStartPre", json!([])), ("ExecStartPreEx", loaded)],
        ),
        [
            "Service.ExecStartPre=/bin/old template:2 ignored overridden",
            "Service.ExecStartPre=-/bin/true web template:4 in_force",
            "Service.ExecStartPre=:+/bin/echo a template:4 in_force",
            "Service.ExecStartPre=/bin/x 'open /d/1:2 ignored not-taken",
            "Service.ExecStartPre=@/bin/echo name '$X' /d/1:3 in_force",
            "Service.ExecStartPre=bin/none /d/1:4 ignored not-taken",
            "Service.ExecStartPre=/bin/new /d/2:2 pending needs-reload",
            "Service.ExecStartPre=!/bin/c /d/2:3 in_force",
            "Service.ExecStartPre=/bin/newer /d/3:2 pending needs-reload",
            "Service.ExecStartPre=-/bin/gone manager in_force",
        ]
    );
}
