//! `machinist label`

use serde_json::json;

use super::complete;
use super::config::change::{self, How};
use super::context::Ctx;
use super::each::look_at_each;
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::config::Wanted;
use crate::ops::config::drop_ins::DropIns;
use crate::output::table::{Column, TableArgs, View};
use crate::unit::label::{KEY, Label, read};
use crate::unit::topic::Topic;

/// Label machines, and show their labels
///
/// Labels are for people and their scripts; systemd and machinist make nothing of them. They stand in a drop-in of the
/// machine's unit. `list --filter 'labels=*role=web*'` finds machines by them. A description is set by
/// `config set NAME description=…`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist label web role=shop tier=front    Set labels
  machinist label web                         Show them
  machinist label web db floor=2              Of several machines
  machinist label '*' --filter key=role       Of all machines
  machinist label web tier=                   Take one away

Columns: machine, key, value.")]
pub(super) struct Args {
    /// Machines, or patterns of image names; and labels, KEY=VALUE: one without a value is taken away
    #[arg(required = true, value_name = "NAME|KEY=VALUE", value_parser = word, add = complete::images())]
    words: Vec<Word>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// No name of a machine has an equals sign.
#[derive(Clone, Debug)]
enum Word {
    Name(String),
    Label(Label),
}

fn word(text: &str) -> Result<Word, String> {
    if text.contains('=') {
        Label::parse(text).map(Word::Label)
    } else {
        Ok(Word::Name(text.to_owned()))
    }
}

pub(super) struct Row {
    machine: String,
    key: String,
    value: String,
}

const COLUMNS: &[Column<Row>] = &[
    Column {
        key: "machine",
        shown: true,
        value: |row| json!(row.machine),
        text: None,
    },
    Column {
        key: "key",
        shown: true,
        value: |row| json!(row.key),
        text: None,
    },
    Column {
        key: "value",
        shown: true,
        value: |row| json!(row.value),
        text: None,
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (mut names, mut labels) = (Vec::new(), Vec::new());
    for word in args.words {
        match word {
            Word::Name(name) => names.push(name),
            Word::Label(label) => labels.push(label),
        }
    }
    if names.is_empty() {
        return Err(CliError::usage("a NAME is missing: whose labels are these?"));
    }
    if labels.is_empty() {
        return show(ctx, &names, &args.table).await;
    }
    let words: Vec<String> = labels.iter().map(|l| format!("{}={}", l.key, l.value)).collect();
    let wanted = Wanted::Edits {
        settings: Vec::new(),
        drop_ins: labels.iter().map(|label| (Topic::Label, label.edit())).collect(),
    };
    let what = format!("label {}", words.join(" "));
    change::run(ctx, "label", &names, what, wanted, How::dry(args.dry_run)).await
}

async fn show(ctx: &Ctx, names: &[String], table: &TableArgs) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, table, ctx.voice)?;
    let names = resolve(ctx, names, Pool::Images).await?;
    let (found, status) = look_at_each(ctx, &names, async |name| {
        super::config::find(ctx, &name).await?;
        let labels = read(&DropIns::of(&name, &ctx.places).own(KEY));
        let machine = name.to_string();
        Ok(labels
            .into_iter()
            .map(|(key, value)| Row {
                machine: machine.clone(),
                key,
                value,
            })
            .collect::<Vec<_>>())
    })
    .await;
    view.print(found.into_iter().flatten().collect(), "label", ctx.voice)?;
    Ok(status)
}
