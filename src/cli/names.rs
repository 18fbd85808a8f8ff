//! Machine names and patterns on the command line.

use std::collections::BTreeSet;

use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::machine::text::printable;

/// What a pattern is matched against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Images, running or not.
    Images,
    /// Machines that are registered.
    Running,
    /// Both.
    All,
}

/// What verbs take that do something to running machines, and nothing else.
#[derive(Debug, clap::Args)]
pub struct RunningMachines {
    /// Machines, or patterns of running machines' names
    #[arg(required = true, value_name = "NAME", add = complete::running())]
    names: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl RunningMachines {
    /// The names of them.
    pub async fn resolve(&self, ctx: &Ctx) -> Result<Vec<MachineName>, CliError> {
        resolve(ctx, &self.names, Pool::Running).await
    }
}

/// Turns arguments into names: a plain name stands for itself, whether it exists or not; a pattern for the machines of
/// `pool` that it matches, and for at least one. Each name comes once, in the order of the arguments.
pub async fn resolve(ctx: &Ctx, arguments: &[String], pool: Pool) -> Result<Vec<MachineName>, CliError> {
    let mut names: Vec<MachineName> = Vec::new();
    let mut known: Option<BTreeSet<MachineName>> = None;
    let mut add = |name: MachineName| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    for argument in arguments {
        if !argument.contains(['*', '?', '[']) {
            add(argument.parse()?);
            continue;
        }
        let pattern = glob::Pattern::new(argument)
            .map_err(|error| CliError::usage(format!("pattern '{}' is not valid: {error}", printable(argument))))?;
        if known.is_none() {
            known = Some(members(ctx, pool).await?);
        }
        let matching: Vec<_> = known
            .iter()
            .flatten()
            .filter(|name| pattern.matches(name.as_str()))
            .cloned()
            .collect();
        if matching.is_empty() {
            return Err(
                CliError::new(Kind::NotFound, format!("no machine matches '{}'", printable(argument)))
                    .hint("see `machinist list -a`"),
            );
        }
        matching.into_iter().for_each(&mut add);
    }
    Ok(names)
}

/// All names of a pool. Images that could never be registered under their name are none of ours.
async fn members(ctx: &Ctx, pool: Pool) -> Result<BTreeSet<MachineName>, CliError> {
    let bus = ctx.bus().await?;
    let mut members = BTreeSet::new();
    if pool != Pool::Running {
        members.extend(bus.images().await?.into_iter().filter_map(|row| row.0.parse().ok()));
    }
    if pool != Pool::Images {
        // A pattern is never meant for virtual machines; by their whole name they can be seen and taken down.
        let containers = bus.machines().await?.into_iter().filter(|row| row.1 == "container");
        members.extend(containers.filter_map(|row| row.0.parse().ok()));
    }
    Ok(members)
}
