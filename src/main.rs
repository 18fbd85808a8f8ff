//! The `machinist` command.

use std::process::ExitCode;

use clap::CommandFactory as _;
use machinist::cli;

fn main() -> ExitCode {
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
