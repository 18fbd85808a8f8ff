//! `machinist secret`: the verbs on secrets, one file each.

mod change;
mod list;

use super::context::Ctx;
use super::error::CliError;

/// Secrets that machines are given when they start
///
/// A secret is a credential, see systemd.exec(5) and <https://systemd.io/CREDENTIALS>. On the host it lies encrypted in
/// /var/lib/machinist/secrets/NAME/, by the host's key or its TPM2, as systemd-creds(1) does it; systemd decrypts it when the
/// machine starts. In a machine with systemd it is /run/credentials/@system/KEY, which services there take by
/// `LoadCredential=KEY` or `ImportCredential=KEY`; in any machine it is $CREDENTIALS_DIRECTORY/KEY of the first process. Only
/// root there can read it.
///
/// A drop-in of the machine's unit hands secrets on: it sets the command line of the installed systemd-nspawn@.service again,
/// with a switch for each. `config check` says when the unit has another one by now. The values are never on a command
/// line, in a log or in the list of changes: `config undo` does not bring secrets back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  head -c 16 /dev/urandom | base64 | machinist secret set web db-password
  machinist secret set web tls.key --file key.pem
  machinist secret list web
  machinist secret remove web db-password tls.key")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Give machines a secret
    ///
    /// The value is all bytes of standard input or of the file, a newline at the end too; 768 KiB at most. With the value
    /// that it has nothing is done. The machine gets it when it starts.
    #[command(after_help = "Examples:
  head -c 16 /dev/urandom | base64 | machinist secret set web db-password
  machinist secret set 'web-*' tls.key --file key.pem --restart
  machinist secret set web --refresh    After the unit systemd-nspawn@.service has changed")]
    Set(change::SetArgs),
    List(list::Args),
    /// Take secrets away from machines
    ///
    /// The encrypted files are deleted, and not kept anywhere. A running machine has what it was given until it stops.
    #[command(after_help = "Examples:
  machinist secret remove web db-password
  machinist secret remove 'web-*' db-password tls.key --dry-run")]
    Remove(change::RemoveArgs),
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    match args.verb {
        Verb::Set(args) => change::set(ctx, args).await,
        Verb::List(args) => list::run(ctx, args).await,
        Verb::Remove(args) => change::remove(ctx, args).await,
    }
}
