//! The command tree and dispatch, nothing else.

pub mod complete;
pub mod context;
pub mod each;
pub mod error;
pub mod names;

mod attach;
mod bind;
mod clean;
mod clone;
mod completions;
mod config;
mod console;
mod cp;
mod create;
mod device;
mod disable;
mod doctor;
mod enable;
mod env_file;
mod events;
mod exec;
mod export;
mod freeze;
mod group;
mod help;
mod history;
mod images;
mod import;
mod kill;
mod label;
mod limit;
mod list;
mod login;
mod logs;
mod man;
mod on_off;
mod order;
mod protect;
mod quota;
mod read_only;
mod register;
mod remove;
mod rename;
mod restart;
mod run;
mod secret;
mod shell;
mod show;
mod start;
mod status;
mod stop;
mod storage;
mod sweep;
mod terminate;
mod thaw;
mod top;
mod trust;
mod version;
mod wait;
mod why;

use std::process::ExitCode;
use std::thread::JoinHandle;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use rustix::fs::Mode;

use crate::output::Voice;
use crate::sys::raw::memory::give_back;
use context::Ctx;
use error::CliError;

/// Machine manager for system containers on plain systemd
///
/// Makes images in /var/lib/machines, runs them as systemd-nspawn@NAME.service, and shows what systemd-machined knows.
/// Whatever it makes, machinectl, systemctl and journalctl understand; there is no daemon and no database.
#[derive(Debug, Parser)]
#[command(
    name = "machinist",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = help::with_topics("Examples:
  machinist create web debian:trixie --start    Bootstrap a Debian machine and start it
  machinist list                                See what runs
  machinist stop web                            Power it off cleanly
  machinist help create                         All about one verb, or a topic

Exit status: 0 done, 1 failed, 2 usage, 3 no such machine or image, 4 not permitted,
5 systemd or a service of it is not available, 124 a wait timed out.")
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Data and errors as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// No status lines; warnings and errors stay
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Never ask for a password
    #[arg(long, global = true, help_heading = "Global options")]
    no_ask_password: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(Box<create::Args>),
    Clone(clone::Args),
    Export(export::Args),
    Import(import::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Terminate(terminate::Args),
    Kill(kill::Args),
    Freeze(freeze::Args),
    Thaw(thaw::Args),
    Wait(wait::Args),
    Exec(Box<exec::Args>),
    Shell(shell::Args),
    Login(login::Args),
    Console(console::Args),
    Cp(cp::Args),
    Bind(bind::Args),
    Run(Box<run::Args>),
    Enable(enable::Args),
    Disable(disable::Args),
    List(list::Args),
    Status(status::Args),
    Top(top::Args),
    Show(show::Args),
    History(history::Args),
    Logs(logs::Args),
    Events(events::Args),
    Why(why::Args),
    Doctor(doctor::Args),
    Images(images::Args),
    Config(config::Args),
    Limit(limit::Args),
    Quota(quota::Args),
    Device(device::Args),
    Label(label::Args),
    Order(order::Args),
    Secret(secret::Args),
    Register(register::Args),
    Rename(rename::Args),
    ReadOnly(read_only::Args),
    Protect(protect::Args),
    Remove(remove::Args),
    Storage(storage::Args),
    Trust(trust::Args),
    Clean(clean::Args),
    Completions(completions::Args),
    Man(man::Args),
    Version(version::Args),
    Help(help::Args),
}

/// Stack of the thread that reads the command line, in bytes: that of a main thread.
const PARSER_STACK: usize = 8 << 20;

/// Reads the command line. What all verbs take, at once, is half a megabyte of stack and heap: it goes before the verb runs,
/// which may be for days.
fn parse() -> Result<Cli, clap::Error> {
    let thread = std::thread::Builder::new().stack_size(PARSER_STACK);
    let parsed = thread.spawn(Cli::try_parse).map(JoinHandle::join);
    let cli = parsed.ok().and_then(Result::ok).unwrap_or_else(Cli::try_parse);
    give_back();
    cli
}

/// Reads the command line, runs the verb, shows its error, and returns the exit status.
pub async fn run() -> ExitCode {
    crate::sys::enter::keep_children();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let voice = Voice {
        quiet: cli.global.quiet,
        json: cli.global.json,
    };
    let ctx = Ctx::new(voice, !cli.global.no_ask_password);
    // What is made belongs to the system and not to who calls: this is what systemd gives its services.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let result = tokio::select! {
        // An interruption is known to the verb when it goes on.
        biased;
        // Only verbs that have nothing to undo are dropped in the middle: see `Ctx::cancel`.
        () = interrupted(&ctx) => Err(CliError::new(error::Kind::Interrupted, "interrupted")),
        result = dispatch(&ctx, cli.verb) => result,
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            error.show(voice);
            ExitCode::from(error.kind.exit_status())
        }
    }
}

async fn dispatch(ctx: &Ctx, verb: Verb) -> Result<u8, CliError> {
    match verb {
        Verb::Create(args) => create::run(ctx, *args).await,
        Verb::Clone(args) => clone::run(ctx, args).await,
        Verb::Export(args) => export::run(ctx, args).await,
        Verb::Import(args) => import::run(ctx, args).await,
        Verb::Start(args) => start::run(ctx, args).await,
        Verb::Stop(args) => stop::run(ctx, args).await,
        Verb::Restart(args) => restart::run(ctx, args).await,
        Verb::Terminate(args) => terminate::run(ctx, args).await,
        Verb::Kill(args) => kill::run(ctx, args).await,
        Verb::Freeze(args) => freeze::run(ctx, args).await,
        Verb::Thaw(args) => thaw::run(ctx, args).await,
        Verb::Wait(args) => wait::run(ctx, args).await,
        Verb::Run(args) => run::run(ctx, *args).await,
        Verb::Shell(args) => shell::run(ctx, args).await,
        Verb::Login(args) => login::run(ctx, args).await,
        Verb::Console(args) => console::run(ctx, args).await,
        Verb::Exec(args) => exec::run(ctx, *args).await,
        Verb::Cp(args) => cp::run(ctx, args).await,
        Verb::Bind(args) => bind::run(ctx, args).await,
        Verb::Enable(args) => enable::run(ctx, args).await,
        Verb::Disable(args) => disable::run(ctx, args).await,
        Verb::List(args) => list::run(ctx, args).await,
        Verb::Status(args) => status::run(ctx, args).await,
        Verb::Top(args) => top::run(ctx, args).await,
        Verb::Show(args) => show::run(ctx, args).await,
        Verb::History(args) => history::run(ctx, args).await,
        Verb::Logs(args) => logs::run(ctx, args).await,
        Verb::Events(args) => events::run(ctx, args).await,
        Verb::Why(args) => why::run(ctx, args).await,
        Verb::Doctor(args) => doctor::run(ctx, args).await,
        Verb::Images(args) => images::run(ctx, args).await,
        Verb::Config(args) => config::run(ctx, args).await,
        Verb::Limit(args) => limit::run(ctx, args).await,
        Verb::Quota(args) => quota::run(ctx, args).await,
        Verb::Device(args) => device::run(ctx, args).await,
        Verb::Label(args) => label::run(ctx, args).await,
        Verb::Order(args) => order::run(ctx, args).await,
        Verb::Secret(args) => secret::run(ctx, args).await,
        Verb::Register(args) => register::run(ctx, args).await,
        Verb::Rename(args) => rename::run(ctx, args).await,
        Verb::ReadOnly(args) => read_only::run(ctx, args).await,
        Verb::Protect(args) => protect::run(ctx, args).await,
        Verb::Remove(args) => remove::run(ctx, args).await,
        Verb::Storage(args) => storage::run(ctx, args).await,
        Verb::Trust(args) => trust::run(ctx, args).await,
        Verb::Clean(args) => clean::run(ctx, args).await,
        Verb::Completions(args) => completions::run(ctx, &args),
        Verb::Man(args) => man::run(ctx, &args),
        Verb::Version(args) => version::run(ctx, args).await,
        Verb::Help(args) => help::run(ctx, &args),
    }
}

/// Returns when the user has interrupted a verb that has nothing to undo. One that has is told by `ctx.cancel`, and
/// ends by itself; a second signal does not hurry it.
async fn interrupted(ctx: &Ctx) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
        ctx.cancel.cancel();
        if !ctx.must_finish() {
            return;
        }
    }
}

/// Help and version go to stdout; what cannot be parsed is a usage error, as JSON if that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let asked_for_json = std::env::args_os().any(|arg| arg == "--json");
    if error.use_stderr() && asked_for_json {
        let text = error.render().to_string();
        // What is missing stands in the lines after the first.
        let message = text
            .lines()
            .take_while(|line| !line.is_empty())
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" ");
        let mut usage = CliError::usage(message.trim_start_matches("error: "));
        if error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            usage = usage.hint("see `machinist --help`");
        }
        usage.show(Voice {
            quiet: false,
            json: true,
        });
    } else {
        // A closed stdout is no news.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// A number of seconds on the command line, with or without a fraction; not negative.
fn seconds(text: &str) -> Result<std::time::Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|number| std::time::Duration::try_from_secs_f64(number).ok())
        .ok_or_else(|| "a number of seconds is expected".to_owned())
}
