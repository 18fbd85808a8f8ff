//! `machinist images --remote`

use serde_json::json;

use super::Args;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::text;
use crate::ops::OpError;
use crate::output::table::{Column, View};
use crate::sources::catalogue::{Archive, CatalogueOptions, Image, read};
use crate::sources::{CacheUse, DownloadOptions, Verify};

/// For images of every processor.
const ALL: &str = "all";

const COLUMNS: &[Column<Image>] = &[
    Column {
        key: "name",
        shown: true,
        value: |i| json!(i.name),
        text: None,
    },
    Column {
        key: "arch",
        shown: true,
        value: |i| json!(i.arch),
        text: None,
    },
    Column {
        key: "version",
        shown: true,
        value: |i| json!(i.version),
        text: None,
    },
    Column {
        key: "format",
        shown: true,
        value: |i| json!(i.archive.as_ref().map(|archive| &archive.format)),
        text: None,
    },
    Column {
        key: "size",
        shown: true,
        value: |i| json!(size(i)),
        text: Some(|i| size(i).map_or_else(|| "-".to_owned(), text::bytes)),
    },
    Column {
        key: "aliases",
        shown: false,
        value: |i| json!(i.aliases),
        text: None,
    },
    Column {
        key: "os",
        shown: false,
        value: |i| json!(i.os),
        text: None,
    },
    Column {
        key: "release",
        shown: false,
        value: |i| json!(i.release),
        text: None,
    },
    Column {
        key: "variant",
        shown: false,
        value: |i| json!(i.variant),
        text: None,
    },
    Column {
        key: "sha256",
        shown: false,
        value: |i| json!(i.archive.as_ref().map(|archive| archive.sum.to_string())),
        text: None,
    },
];

fn size(image: &Image) -> Option<u64> {
    image.archive.as_ref().and_then(|archive: &Archive| archive.size)
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let config = ctx.config()?;
    let options = CatalogueOptions {
        server: args.server.or(config.image_server),
        arch: args.arch,
    };
    let download = DownloadOptions {
        proxy: args.proxy.or(config.proxy),
        cache: CacheUse::Skip,
        verify: Verify::Offered,
        keyring: None,
    };
    let arch = options.arch().to_owned();
    let (places, progress, cancel) = (ctx.places.for_sources(), ctx.progress("images"), ctx.cancel.clone());
    let catalogue = ctx.blocking(move || read(&options, &download, &places, &progress, &cancel).map_err(OpError::from));
    let mut images = catalogue.await?.images;
    images.retain(|image| {
        let fits = arch == ALL || image.arch == arch;
        fits && args.pattern.as_deref().is_none_or(|pattern| image.matches(pattern))
    });
    images.sort_by(|one, other| (&one.name, &one.arch).cmp(&(&other.name, &other.arch)));
    view.print(images, "image", ctx.voice)?;
    Ok(0)
}
