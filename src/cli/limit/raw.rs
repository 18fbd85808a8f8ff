//! `--raw`: files of a machine's control group as the kernel has them, as lxc-cgroup reads and writes them.

use serde_json::json;

use crate::cli::context::Ctx;
use crate::cli::each::{Outcome, each, look_at_each, plan_each};
use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::start::find_machine;
use crate::output::data;
use crate::sys::bus::{Bus, BusError};
use crate::sys::cgroup::Cgroup;

/// Reads files, or writes them.
pub(super) async fn run(ctx: &Ctx, names: Vec<MachineName>, words: &[String], dry_run: bool) -> Result<u8, CliError> {
    let (writes, reads): (Vec<&str>, Vec<&str>) = words.iter().map(String::as_str).partition(|word| word.contains('='));
    if !writes.is_empty() && !reads.is_empty() {
        return Err(CliError::usage(
            "files of a control group are read or written, not both at once",
        ));
    }
    for word in words {
        Cgroup::check_name(word.split('=').next().unwrap_or_default())?;
    }
    let bus = ctx.bus().await?;
    if writes.is_empty() {
        return read(ctx, bus, &names, &reads).await;
    }
    let mut files: Vec<(&str, &str)> = Vec::new();
    for (file, value) in writes.iter().filter_map(|word| word.split_once('=')) {
        refuse_structure(file)?;
        if files.iter().any(|(other, _)| *other == file) {
            return Err(CliError::usage(format!("'{file}' is given twice")).hint("give each file once"));
        }
        files.push((file, value));
    }
    if dry_run {
        return plan_each(ctx, &names, async |name| {
            let group = group_of(bus, &name).await?;
            let step =
                |(file, value): &(&str, &str)| Ok(format!("write '{value}' to '{}'", group.path(file)?.display()));
            files.iter().map(step).collect()
        })
        .await;
    }
    ctx.need_root("limit --raw")?;
    each(ctx, "limit", names, async |name| {
        write(&group_of(bus, &name).await?, &files)?;
        let words = writes.join(" ");
        let line = format!("wrote {words} of {name}; systemd does not know, and may write it again");
        Ok(Outcome::new("written", line).with("files", writes.clone()))
    })
    .await
}

/// All of them, or none.
fn write(group: &Cgroup, files: &[(&str, &str)]) -> Result<(), CliError> {
    let mut written: Vec<(&str, String)> = Vec::new();
    for (file, value) in files {
        // Some can only be written.
        let former = group.read(file).ok();
        if let Err(error) = group.write(file, value) {
            for (file, former) in written.iter().rev() {
                // What the kernel said itself it takes again.
                let _ = group.write(file, former.trim_end());
            }
            return Err(error.into());
        }
        written.extend(former.map(|former| (*file, former)));
    }
    Ok(())
}

/// systemd and the machine's own one have made the groups below what they are.
fn refuse_structure(file: &str) -> Result<(), CliError> {
    let kept = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];
    if !file.starts_with("cgroup.") || kept.contains(&file) {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "'{file}' is no limit: systemd and the machine itself manage their groups"
    ))
    .hint("see `machinist stop --help` and `machinist terminate --help` for what ends a machine"))
}

async fn group_of(bus: &Bus, name: &MachineName) -> Result<Cgroup, CliError> {
    let unit = match bus.registered(name.as_str()).await {
        Ok(registered) => registered.unit,
        Err(BusError::NoSuchMachine(_)) => {
            find_machine(bus, name).await?;
            return Err(OpError::NotRunning { name: name.to_string() }.into());
        }
        Err(error) => return Err(error.into()),
    };
    let state = bus.unit_state(&unit).await?;
    Cgroup::of(&state.detail.string("ControlGroup"))
        .ok_or_else(|| CliError::new(Kind::Failed, format!("unit {unit} has no control group")))
}

async fn read(ctx: &Ctx, bus: &Bus, names: &[MachineName], files: &[&str]) -> Result<u8, CliError> {
    let (all, status) = look_at_each(ctx, names, async |name| {
        let group = group_of(bus, &name).await?;
        let read = |file: &&str| Ok((name.clone(), (*file).to_owned(), group.read(file)?));
        files.iter().map(read).collect::<Result<Vec<_>, CliError>>()
    })
    .await;
    let all = all.concat();
    if ctx.voice.json {
        let rows = all
            .iter()
            .map(|(name, file, text)| json!({ "machine": name, "file": file, "value": text.trim_end() }));
        ctx.voice.json(&rows.collect::<Vec<_>>())?;
        return Ok(status);
    }
    let several = names.len() * files.len() > 1;
    for (name, file, text) in &all {
        let head = if several {
            format!("# {name} {file}\n")
        } else {
            String::new()
        };
        data(&format!("{head}{text}"))?;
    }
    Ok(status)
}
