//! `machinist device list`

use serde_json::json;

use crate::cli::complete;
use crate::cli::config::get::settings_of;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::MachineName;
use crate::ops::config::drop_ins::DropIns;
use crate::output::table::{Column, TableArgs, View};
use crate::unit::device::{BUNDLES, Device};

/// Show the devices that a machine was given
///
/// Those that its settings mount, whoever wrote them; ALLOWED says what its unit permits: without that the mount is of no
/// use, but for what the template unit permits to every machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist device list web
  machinist device list web --json

Columns: device, name, read_only, allowed, present.")]
pub(super) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    #[command(flatten)]
    table: TableArgs,
}

struct Row {
    device: Device,
    read_only: bool,
    allowed: Option<String>,
}

const COLUMNS: &[Column<Row>] = &[
    Column {
        key: "device",
        shown: true,
        value: |row| json!(row.device.path),
        text: None,
    },
    Column {
        key: "name",
        shown: true,
        value: |row| json!(row.device.bundle.map(|bundle| format!("@{}", bundle.name))),
        text: None,
    },
    Column {
        key: "read_only",
        shown: true,
        value: |row| json!(row.read_only),
        text: None,
    },
    Column {
        key: "allowed",
        shown: true,
        value: |row| json!(row.allowed),
        text: None,
    },
    Column {
        key: "present",
        shown: true,
        value: |row| json!(std::path::Path::new(&row.device.path).exists()),
        text: None,
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let settings = settings_of(ctx, &args.name).await?;
    let permitted = DropIns::of(&args.name, &ctx.places).values("Service", "DeviceAllow", true);
    let mut rows = Vec::new();
    for (key, read_only) in [("Bind", false), ("BindReadOnly", true)] {
        for value in settings.values("Files", key) {
            let source = value.value.split(':').next().unwrap_or_default();
            let Some(device) = device(source) else { continue };
            let allowed = permitted
                .iter()
                .find_map(|value| device.allowed_by(&value.value).map(str::to_owned));
            rows.push(Row {
                device,
                read_only,
                allowed,
            });
        }
    }
    rows.sort_by(|a, b| a.device.path.cmp(&b.device.path));
    view.print(rows, "device", ctx.voice)?;
    Ok(0)
}

/// The device of a path, under the name that it has.
fn device(path: &str) -> Option<Device> {
    let known = BUNDLES
        .iter()
        .filter_map(|bundle| Device::parse(&format!("@{}", bundle.name)).ok());
    known
        .into_iter()
        .find(|device| device.path == path)
        .or_else(|| Device::parse(path).ok())
}
