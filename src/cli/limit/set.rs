//! Setting limits: what is asked for, and from when on it holds.

use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::unit_of;
use crate::cli::context::{Ctx, is_root};
use crate::cli::each::{Outcome, each, plan_each};
use crate::cli::error::CliError;
use crate::limit::Assignment;
use crate::machine::MachineName;
use crate::ops::limit::{Done, Order, Systemd, limit, plan};
use crate::sys::bus::Bus;

/// Limits machines.
pub(super) async fn machines(
    ctx: &Ctx,
    names: Vec<MachineName>,
    limits: Vec<Assignment>,
    runtime: bool,
    dry_run: bool,
) -> Result<u8, CliError> {
    refuse_runtime(&limits, runtime)?;
    let bus = ctx.bus().await?;
    let systemd = bus.systemd_version().await?;
    let order = async |name: &MachineName| {
        let unit = unit_of(bus, name).await?;
        if unit.ends_with(".scope") && (!runtime || limits.iter().any(|limit| !limit.key.is_property())) {
            return Err(CliError::new(
                crate::cli::error::Kind::Failed,
                format!("machine '{name}' runs in {unit}, which is gone when it stops: nothing lasts there"),
            )
            .hint("limit it with `--runtime` as long as it runs, or run it with `machinist start`"));
        }
        Ok::<_, CliError>(Order {
            subject: name.to_string(),
            machine: Some(name.clone()),
            unit,
            limits: limits.clone(),
            runtime,
            systemd,
            is_root: is_root(),
        })
    };
    if dry_run {
        return plan_each(ctx, &names, async |name| steps(ctx, bus, order(&name).await?).await).await;
    }
    ctx.config()?;
    ctx.authorize().await;
    each(ctx, "limit", names, async |name| {
        let order = order(&name).await?;
        let done = set(ctx, bus, order.clone()).await?;
        let is_up = bus.is_unit_up(&order.unit).await?;
        Ok(outcome(ctx, &order, &done, is_up))
    })
    .await
}

/// Limits what machines share. It is no machine: it has no settings, and no entry in the journal of one.
pub(super) async fn slice(
    ctx: &Ctx,
    unit: String,
    limits: Vec<Assignment>,
    runtime: bool,
    dry_run: bool,
) -> Result<u8, CliError> {
    if let Some(limit) = limits.iter().find(|limit| !limit.key.is_property()) {
        let key = limit.key.shown();
        return Err(CliError::usage(format!("{key} is no limit of a slice"))
            .hint(format!("limit each machine: `machinist limit NAME {}`", limit.text)));
    }
    let bus = ctx.bus().await?;
    let order = Order {
        subject: unit.clone(),
        machine: None,
        unit,
        limits,
        runtime,
        systemd: bus.systemd_version().await?,
        is_root: is_root(),
    };
    if dry_run {
        let steps = steps(ctx, bus, order).await?;
        ctx.show_plan(&steps)?;
        return Ok(0);
    }
    ctx.config()?;
    ctx.authorize().await;
    let done = set(ctx, bus, order.clone()).await?;
    let is_up = bus.is_unit_up(&order.unit).await?;
    let outcome = outcome(ctx, &order, &done, is_up);
    ctx.voice.status(&outcome.line);
    if ctx.voice.json {
        let mut fields = outcome.fields;
        fields.insert("slice".to_owned(), json!(order.unit));
        fields.insert("result".to_owned(), json!(outcome.result));
        ctx.voice.json(&[Value::Object(fields)])?;
    }
    Ok(0)
}

/// What stands in the settings lasts.
fn refuse_runtime(limits: &[Assignment], runtime: bool) -> Result<(), CliError> {
    let in_settings = |limit: &&Assignment| limit.key.kind == crate::limit::Kind::Exec;
    match limits.iter().find(in_settings).filter(|_| runtime) {
        Some(limit) => Err(CliError::usage(format!(
            "{} stands in the machine's settings, which last: `--runtime` is for limits of the unit",
            limit.key.shown()
        ))
        .hint(format!("set it on its own: `machinist limit NAME {}`", limit.text))),
        None => Ok(()),
    }
}

fn through(bus: &Bus) -> Systemd {
    Systemd {
        bus: bus.clone(),
        handle: Handle::current(),
    }
}

async fn steps(ctx: &Ctx, bus: &Bus, order: Order) -> Result<Vec<String>, CliError> {
    let (places, systemd) = (ctx.places.clone(), through(bus));
    ctx.blocking(move || plan(&order, &places, &systemd)).await
}

async fn set(ctx: &Ctx, bus: &Bus, order: Order) -> Result<Done, CliError> {
    let (places, systemd) = (ctx.places.clone(), through(bus));
    let (progress, cancel) = (ctx.progress(&order.subject), ctx.cancel.clone());
    ctx.blocking(move || limit(&order, &places, &systemd, &progress, &cancel))
        .await
}

/// What to say, and what holds from when on.
fn outcome(ctx: &Ctx, order: &Order, done: &Done, is_up: bool) -> Outcome {
    let subject = &order.subject;
    for overridden in &done.overridden {
        ctx.voice.warning(&format!(
            "{subject}: '{}' says {}, which wins over this limit {}",
            overridden.file.display(),
            overridden.says,
            if is_up {
                "when systemd reads its files again"
            } else {
                "now"
            }
        ));
    }
    for note in done.settings.iter().flat_map(|changed| &changed.notes) {
        ctx.voice.status(&format!("{subject}: {note}"));
    }
    for finding in done.settings.iter().flat_map(|changed| &changed.warnings) {
        ctx.voice.warning(&format!("{subject}: {}", finding.message));
    }
    let holds = |limit: &Assignment| match (is_up, limit.key.is_property()) {
        (false, _) => "next-start",
        (true, true) => "now",
        (true, false) => "after-restart",
    };
    let words = |when: &str| {
        let limits = order.limits.iter().filter(|limit| holds(limit) == when);
        limits.map(|limit| limit.text.as_str()).collect::<Vec<_>>().join(" ")
    };
    let all: Vec<&str> = order.limits.iter().map(|limit| limit.text.as_str()).collect();
    let said = if done.changed {
        format!("limited {subject}: ")
    } else {
        format!("{subject} is so limited already: ")
    };
    let how_long = if order.runtime { ", until the next boot" } else { "" };
    let later = match (words("next-start"), words("now"), words("after-restart")) {
        (next, ..) if !next.is_empty() && order.machine.is_none() => {
            "; holds as soon as a machine runs in it".to_owned()
        }
        (next, ..) if !next.is_empty() => "; holds from its next start".to_owned(),
        (.., later) if later.is_empty() => String::new(),
        (_, now, _) if now.is_empty() => "; holds when it is restarted".to_owned(),
        (.., later) => format!("; {later} when it is restarted"),
    };
    let line = format!("{said}{}{how_long}{later}", all.join(" "));
    let limits: Vec<Value> = order
        .limits
        .iter()
        .map(|limit| {
            let value = limit.text.split_once('=').map(|(_, value)| value);
            json!({ "key": limit.key.shown(), "directive": limit.key.directive, "value": value, "holds": holds(limit) })
        })
        .collect();
    let overridden: Vec<Value> = done
        .overridden
        .iter()
        .map(|other| json!({ "key": other.key, "file": other.file, "says": other.says }))
        .collect();
    let settings = done.settings.as_ref();
    Outcome::new(if done.changed { "limited" } else { "unchanged" }, line)
        .with("unit", order.unit.as_str())
        .with("limits", limits)
        .with("overridden", overridden)
        .with(
            "file",
            settings
                .and_then(|changed| changed.files.first())
                .map(|file| file.to_string_lossy().into_owned()),
        )
        .with("change", settings.and_then(|changed| changed.number))
}
