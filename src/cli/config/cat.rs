//! `machinist config cat`

use serde_json::json;

use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::each::look_at_each;
use crate::cli::error::CliError;
use crate::cli::names::{Pool, resolve};
use crate::ops::OpError;
use crate::ops::config::files::{SettingsFile, of_machine};
use crate::output::{data, text_file};
use crate::sys::files::shown;

/// Show settings files as they are
///
/// Of each machine the file that systemd reads, with its path above it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config cat web
  machinist config cat web db --json   With path and trust, for scripts")]
pub(in crate::cli) struct Args {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Images).await?;
    let (found, status) = look_at_each(ctx, &names, async |name| {
        super::find(ctx, &name).await?;
        let mut files = of_machine(&name, &ctx.places).into_iter();
        let Some(file) = files.next() else {
            ctx.voice
                .status(&format!("{name} has no settings of its own: those of its unit hold"));
            return Ok((name, None));
        };
        for hidden in files {
            let (hidden, first) = (shown(&hidden.path), shown(&file.path));
            ctx.voice
                .warning(&format!("'{hidden}' is not read: systemd finds '{first}' first"));
        }
        let bytes = file.read().map_err(OpError::from)?;
        Ok((name, Some((file, bytes))))
    })
    .await;
    if ctx.voice.json {
        let all: Vec<_> = found
            .iter()
            .map(|(name, file)| {
                let (file, text) = file
                    .as_ref()
                    .map(|(file, bytes)| (file, String::from_utf8_lossy(bytes)))
                    .unzip();
                json!({
                    "machine": name,
                    "file": file.map(|file: &SettingsFile| file.path.to_string_lossy()),
                    "trusted": file.map(|file| file.trusted),
                    "text": text,
                })
            })
            .collect();
        ctx.voice.json(&all)?;
        return Ok(status);
    }
    let files: Vec<_> = found.iter().filter_map(|(_, file)| file.as_ref()).collect();
    for (number, (file, bytes)) in files.into_iter().enumerate() {
        let gap = if number > 0 { "\n" } else { "" };
        data(&format!("{gap}# {}\n", shown(&file.path)))?;
        text_file(bytes)?;
    }
    Ok(status)
}
