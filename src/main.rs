//! The `machinist` command.

use std::process::ExitCode;

use clap::CommandFactory as _;
use machinist::cli;
use machinist::sys::enter;

fn main() -> ExitCode {
    // A helper that is to join a machine has one thread and does nothing else.
    if enter::helper_main() {
        return ExitCode::FAILURE;
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
