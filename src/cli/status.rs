//! `machinist status`

use std::fmt::Write as _;

use super::complete;
use super::context::Ctx;
use super::each::look_at_each;
use super::error::CliError;
use super::list::addresses_text;
use super::names::{Pool, resolve};
use crate::machine::status::{Status, Usage};
use crate::machine::text::{bytes, printable};
use crate::machine::{Seen, State};
use crate::ops::start::find_machine;
use crate::output::{data, time};
use crate::sys::inspect::{Detail, inspect};

/// Show one screen about each machine
///
/// State, unit, processes, what it uses of what it may, addresses, where its files lie, and the last lines of its
/// journal. What may not be read without root is left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist status web               All about one machine
  machinist status web --namespaces  And which namespaces it has of its own
  machinist status web --json        For scripts")]
pub(super) struct Args {
    /// Machines, or patterns of names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// Also show its namespaces
    #[arg(long)]
    namespaces: bool,
    /// How many lines of its journal to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u32,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let bus = ctx.bus().await?;
    let detail = Detail {
        namespaces: args.namespaces,
        journal_lines: args.lines,
    };
    let (all, status) = look_at_each(ctx, &names, async |name| {
        find_machine(bus, &name).await?;
        Ok(inspect(bus, &name, detail).await?)
    })
    .await;
    if ctx.voice.json {
        ctx.voice.json(&all)?;
    } else {
        let screens: Vec<String> = all.iter().map(screen).collect();
        data(&screens.join("\n"))?;
    }
    Ok(status)
}

/// The width that labels are aligned in, as systemctl does.
const LABEL: usize = 11;

fn screen(status: &Status) -> String {
    let mut text = format!("{} ({})\n", status.name, status.state.as_str());
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{label:>LABEL$}: {}", printable(value));
        }
    };
    line("Since", &since(status));
    line("Leader", &leader(status));
    line(
        "Service",
        &[status.service.as_deref(), status.class.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("; class "),
    );
    line(
        "OS",
        &match &status.os {
            Seen::Value(os) => os.pretty_name.clone().unwrap_or_else(|| os.id.clone()),
            Seen::None => String::new(),
            Seen::TimedOut => "?".to_owned(),
        },
    );
    line("Guest", status.status_text.as_deref().unwrap_or_default());
    line(
        "Address",
        &match &status.addresses {
            Seen::Value(list) => addresses_text(list),
            Seen::None if status.private_network == Some(false) => "the host's own network".to_owned(),
            Seen::None => String::new(),
            Seen::TimedOut => "?".to_owned(),
        },
    );
    line(
        "Users",
        &status.uid_shift.map_or_else(String::new, |shift| match shift.base {
            0 => "the host's own".to_owned(),
            base => format!("private: its root is uid {base} here ({} uids)", shift.count),
        }),
    );
    line("Image", status.image.as_deref().unwrap_or_default());
    line("Settings", status.settings.as_deref().unwrap_or_default());
    let enabled = if status.enabled {
        "starts at boot"
    } else {
        "does not start at boot"
    };
    line("Unit", &format!("{} ({enabled})", status.unit));
    line("Result", status.result.as_deref().unwrap_or_default());
    for drop_in in &status.drop_ins {
        line("Drop-In", drop_in);
    }
    line("Memory", &usage(status.memory, bytes));
    line("Tasks", &usage(status.tasks, |number| number.to_string()));
    line("CPU", &cpu(status.cpu));
    line("Disk", &usage(status.disk, bytes));
    for space in status.namespaces.iter().flatten() {
        let whose = if space.shared { "the host's" } else { "its own" };
        line("Namespace", &format!("{} {} ({whose})", space.kind, space.id));
    }
    line("CGroup", status.control_group.as_deref().unwrap_or_default());
    tree(&mut text, status);
    if !status.journal.is_empty() {
        text.push('\n');
    }
    for entry in &status.journal {
        let _ = writeln!(
            text,
            "{} {}: {}",
            entry.time,
            printable(&entry.identifier),
            printable(entry.message.trim_end())
        );
    }
    text
}

fn since(status: &Status) -> String {
    let parsed = status
        .since
        .as_deref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let Some(micros) = parsed.and_then(|time| u64::try_from(time.as_microsecond()).ok()) else {
        return String::new();
    };
    format!("{}; {} ago", time::local(micros), time::ago(micros))
}

fn leader(status: &Status) -> String {
    match (status.leader, &status.leader_command) {
        (Some(pid), Some(command)) => format!("{pid} ({command})"),
        (Some(pid), None) => pid.to_string(),
        (None, _) => String::new(),
    }
}

fn usage(usage: Usage, show: impl Fn(u64) -> String) -> String {
    let Some(current) = usage.current else {
        return String::new();
    };
    let mut notes = Vec::new();
    notes.extend(usage.peak.map(|peak| format!("peak {}", show(peak))));
    notes.extend(usage.limit.map(|limit| format!("limit {}", show(limit))));
    if notes.is_empty() {
        show(current)
    } else {
        format!("{} ({})", show(current), notes.join(", "))
    }
}

fn cpu(usage: Usage) -> String {
    let Some(nanoseconds) = usage.current else {
        return String::new();
    };
    let milliseconds = nanoseconds / 1_000_000;
    let used = format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000);
    // The quota is µs of CPU time per second: 10 ms of it are one per cent of a CPU.
    usage
        .limit
        .map_or(used.clone(), |quota| format!("{used} (limit {}%)", quota / 10_000))
}

/// Processes under their control groups, as systemd-cgls draws them.
fn tree(text: &mut String, status: &Status) {
    let indent = " ".repeat(LABEL + 2);
    let mut group = "";
    for process in &status.processes {
        if process.control_group != group {
            group = &process.control_group;
            let _ = writeln!(text, "{indent}{}", printable(group));
        }
        let depth = if group.is_empty() { "" } else { "  " };
        let command: String = process.command.chars().take(120).collect();
        let _ = writeln!(text, "{indent}{depth}{:>7} {}", process.pid, printable(&command));
    }
    if status.state == State::Running && status.processes.is_empty() && status.control_group.is_some() {
        let _ = writeln!(text, "{indent}(its processes may not be read)");
    }
}
