//! One verb on many machines: in parallel, and one failure does not stop the others.

use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};

use super::context::Ctx;
use super::error::CliError;
use crate::machine::MachineName;
use crate::sys::journal::audit;

/// What came of one machine.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One word for scripts: "started", "already-running".
    pub result: &'static str,
    /// The line for people: "started web".
    pub line: String,
    /// What scripts are told besides.
    pub fields: Map<String, Value>,
}

impl Outcome {
    /// An outcome with the line that people see.
    #[must_use]
    pub fn new(result: &'static str, line: impl Into<String>) -> Self {
        Self {
            result,
            line: line.into(),
            fields: Map::new(),
        }
    }

    /// Adds something for scripts.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }
}

/// Looks at every name at the same time, and returns what was found in the order of the names, with the exit status: a
/// name at which this fails does not keep the others from being shown.
pub async fn look_at_each<T, F>(ctx: &Ctx, names: &[MachineName], look: impl Fn(MachineName) -> F) -> (Vec<T>, u8)
where
    F: Future<Output = Result<T, CliError>>,
{
    let mut status = 0;
    let mut found = Vec::new();
    for result in futures_util::future::join_all(names.iter().cloned().map(look)).await {
        match result {
            Ok(value) => found.push(value),
            Err(error) => {
                error.show(ctx.voice);
                status = if names.len() == 1 { error.kind.exit_status() } else { 1 };
            }
        }
    }
    (found, status)
}

/// Shows the steps of a dry run for every name; where there is nothing to do or it would be refused, that.
pub async fn plan_each<F>(ctx: &Ctx, names: &[MachineName], plan: impl Fn(MachineName) -> F) -> Result<u8, CliError>
where
    F: Future<Output = Result<Vec<String>, CliError>>,
{
    let (plans, status) = look_at_each(ctx, names, plan).await;
    ctx.show_plan(&plans.concat())?;
    Ok(status)
}

/// Runs `work` for every name, `machinist.conf`'s `Parallel=` at a time; says and logs what came of each.
///
/// The exit status is that of the only machine, or 1 if any of several failed.
pub async fn each<F>(
    ctx: &Ctx,
    verb: &'static str,
    names: Vec<MachineName>,
    work: impl Fn(MachineName) -> F,
) -> Result<u8, CliError>
where
    F: Future<Output = Result<Outcome, CliError>>,
{
    let parallel = ctx.config()?.parallel;
    let only = names.len() == 1;
    let mut status = 0;
    let mut results = Vec::new();
    let runs = names.into_iter().map(|name| {
        let run = work(name.clone());
        async move { (name, run.await) }
    });
    let mut runs = std::pin::pin!(futures_util::stream::iter(runs).buffer_unordered(parallel));
    while let Some((name, outcome)) = runs.next().await {
        match outcome {
            Ok(outcome) => {
                audit(name.as_str(), verb, Ok(()));
                ctx.voice.status(&outcome.line);
                let mut fields = outcome.fields;
                fields.insert("machine".to_owned(), json!(name));
                fields.insert("result".to_owned(), outcome.result.into());
                results.push((name.clone(), Value::Object(fields)));
            }
            Err(error) => {
                audit(name.as_str(), verb, Err(&error.message));
                error.show(ctx.voice);
                status = if only { error.kind.exit_status() } else { 1 };
                results.push((
                    name.clone(),
                    json!({ "machine": name, "result": "failed", "error": error }),
                ));
            }
        }
    }
    if ctx.voice.json {
        results.sort_by(|a, b| a.0.cmp(&b.0));
        ctx.voice
            .json(&results.into_iter().map(|(_, result)| result).collect::<Vec<_>>())?;
    }
    Ok(status)
}
