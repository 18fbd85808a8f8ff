//! The `machinist` command.

use std::process::ExitCode;

use clap::CommandFactory as _;
use machinist::cli;
use machinist::sys::logs;

fn main() -> ExitCode {
    // What reads the journals of guests is this program, and nothing else of it runs.
    let mut words = std::env::args_os();
    if words.next().is_some_and(|job| job == logs::READER) {
        return logs::reader_main(words);
    }
    // The shell asks for completions through the environment; then nothing else runs.
    clap_complete::CompleteEnv::with_factory(cli::Cli::command).complete();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::FAILURE;
    };
    let status = runtime.block_on(cli::run());
    // Threads that a guest holds up are not waited for.
    runtime.shutdown_background();
    status
}
