//! `machinist images`

mod remote;

use serde_json::json;

use super::context::Ctx;
use super::error::CliError;
use crate::machine::{Image, Seen, text};
use crate::ops::survey::tell_storage;
use crate::output::table::{Column, TableArgs, View};
use crate::output::time;
use crate::sys::machines::images;

/// List images
///
/// Shows the images that systemd-machined finds in /var/lib/machines and its other search paths. Sizes of directories
/// are counted, hard links once; `?` where that takes longer than 200 ms. STORAGE is how an image lies on its filesystem and is
/// copied, see `machinist storage show --help`; "overlay" is one that lies on layers, as `clone --linked` makes it. Without
/// root that is not tried.
///
/// With --remote, the images of a catalogue, which `create NAME images:NAME` makes machines of: those for this host's processor, each in
/// its newest version.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist images                           All images
  machinist images --sort -size              The largest first
  machinist images --filter type=raw --json  Disk images, for scripts
  machinist images --remote debian           What there is of Debian in the catalogue
  machinist images --remote 'alpine/3.*' --arch arm64

Columns: name, type, storage, ro, size, created, used_by; and modified, path, limit.
With --remote: name, arch, version, format, size; and aliases, os, release, variant, sha256.")]
pub(super) struct Args {
    /// Only images whose name has this in it, or matches it as a pattern
    #[arg(value_name = "PATTERN", requires = "remote")]
    pattern: Option<String>,
    /// Show what a catalogue has, and not what is here
    #[arg(long, help_heading = "Catalogue")]
    remote: bool,
    /// The catalogue's server [default: https://images.linuxcontainers.org]
    #[arg(long, value_name = "URL", requires = "remote", help_heading = "Catalogue")]
    server: Option<String>,
    /// For which processor, as Debian calls it; `all` for every one
    #[arg(long, requires = "remote", help_heading = "Catalogue")]
    arch: Option<String>,
    /// An HTTP proxy
    #[arg(long, value_name = "URL", requires = "remote", help_heading = "Catalogue")]
    proxy: Option<String>,
    #[command(flatten)]
    table: TableArgs,
}

const COLUMNS: &[Column<Image>] = &[
    Column {
        key: "name",
        shown: true,
        value: |i| json!(i.name),
        text: None,
    },
    Column {
        key: "type",
        shown: true,
        value: |i| json!(i.kind),
        text: None,
    },
    Column {
        key: "storage",
        shown: true,
        value: |i| json!(i.storage),
        text: None,
    },
    Column {
        key: "ro",
        shown: true,
        value: |i| json!(i.read_only),
        text: None,
    },
    Column {
        key: "size",
        shown: true,
        value: |i| json!(i.size),
        text: Some(|i| match i.size {
            Seen::Value(bytes) => text::bytes(bytes),
            Seen::None => "-".to_owned(),
            Seen::TimedOut => "?".to_owned(),
        }),
    },
    Column {
        key: "created",
        shown: true,
        value: |i| json!(i.created.map(time::rfc3339)),
        text: Some(|i| i.created.map_or_else(|| "-".to_owned(), time::local)),
    },
    Column {
        key: "used_by",
        shown: true,
        value: |i| json!(i.used_by),
        text: None,
    },
    Column {
        key: "modified",
        shown: false,
        value: |i| json!(i.modified.map(time::rfc3339)),
        text: Some(|i| i.modified.map_or_else(|| "-".to_owned(), time::local)),
    },
    Column {
        key: "path",
        shown: false,
        value: |i| json!(i.path),
        text: None,
    },
    Column {
        key: "limit",
        shown: false,
        value: |i| json!(i.limit),
        text: Some(|i| i.limit.map_or_else(|| "-".to_owned(), text::bytes)),
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    if args.remote {
        return remote::run(ctx, args).await;
    }
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let mut images = images(ctx.bus().await?, view.needs("size"), view.needs("limit")).await?;
    if view.needs("storage") {
        let places = ctx.places.clone();
        let told = ctx.blocking(move || {
            tell_storage(&mut images, &places);
            Ok(images)
        });
        images = told.await?;
    }
    view.print(images, "image", ctx.voice)?;
    Ok(0)
}
