//! Scripts of the caller's that are run in a new machine before anybody sees it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::{Network, Request};
use crate::machine::Cancel;
use crate::nspawn::assignment::Assignment;
use crate::nspawn::edit::Edit;
use crate::ops::run::{self, arrive, end, launch};
use crate::ops::{OpError, Places};
use crate::sys::bus::Bus;
use crate::sys::bus::jobs::Jobs;
use crate::sys::enter::relay::{Ended, read_lines};
use crate::sys::enter::{self, Ends, EnterError, Program, Streams};
use crate::sys::files::{Kind, Root, read_regular};
use crate::sys::guest::Leader;

/// The largest script, in bytes.
const MAX: u64 = 4 << 20;
/// Where a script lies while it runs: not in /run or /tmp, over which the machine's own are mounted.
const PLACE: &str = ".machinist-script";
/// How often a script that runs is asked whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
const RESOLV_CONF: &str = "etc/resolv.conf";

/// A script.
#[derive(Clone, Debug)]
pub struct Script {
    /// What the user calls it.
    name: String,
    text: Vec<u8>,
}

impl Script {
    /// Reads it.
    ///
    /// # Errors
    /// [`OpError::File`] if it is no file, or too large.
    pub fn read(path: &Path) -> Result<Self, OpError> {
        Ok(Self {
            name: path.display().to_string(),
            text: read_regular(path, MAX)?,
        })
    }

    /// As the user calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As a kernel would run it, but for one that does not say what runs it: then the shell does.
    fn command(&self) -> Vec<std::ffi::OsString> {
        let place = format!("/{PLACE}").into();
        if self.text.starts_with(b"#!") {
            vec![place]
        } else {
            vec!["/bin/sh".into(), place]
        }
    }
}

/// Hears each line that a script writes.
pub type Hear = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// What has to be there for a script to be run.
pub struct Runner<'a> {
    /// The system bus.
    pub bus: &'a Bus,
    /// Jobs of systemd.
    pub jobs: &'a Jobs,
    /// Where machines are.
    pub places: &'a Places,
    /// Who hears what a script says.
    pub hear: Hear,
    /// Whether it is still wanted.
    pub cancel: &'a Cancel,
}

impl Runner<'_> {
    /// Runs the scripts of a request in its tree, one after the other, as root of a machine with the settings that it is to
    /// have, where nothing else runs. To be called on a thread that lives until they have ended.
    ///
    /// # Errors
    /// [`OpError::Option`] for a script that fails.
    pub async fn run(&self, request: &Request, tree: &Path) -> Result<(), OpError> {
        let root = Root::open(tree)?;
        if root.is_executable("bin/sh") != Some(true) {
            return Err(OpError::Option {
                message: "there is no /bin/sh in it to run a script with".to_owned(),
                hint: "leave `--run` out, and use `--copy`".to_owned(),
            });
        }
        let resolv_conf = if request.scripts_have_network {
            Some(ResolvConf::replace(&root)?)
        } else {
            None
        };
        let like = of_run(request, tree);
        let (reader, writer) = std::io::pipe().map_err(OpError::path("make", "a pipe"))?;
        let launched = launch(self.bus, &like, Some(reader.into()), self.places).await?;
        let ran = match arrive(self.bus, self.jobs, &like, launched).await {
            Ok(_) => self.all(request, &root).await,
            Err(error) => Err(error),
        };
        drop(writer);
        // Whatever a script has left running ends with it.
        let ended = end(self.bus, self.jobs, &request.name).await;
        ran.and(ended)?;
        match resolv_conf {
            Some((own, host)) => own.restore(&root, &host),
            None => Ok(()),
        }
    }

    async fn all(&self, request: &Request, root: &Root) -> Result<(), OpError> {
        for script in &request.scripts {
            root.write(PLACE, &script.text, 0o700)?;
            let ran = self.one(request, script).await;
            // Whatever the script has made of it.
            match root.kind(PLACE)? {
                Some(Kind::Directory) => root.remove_dir_all(PLACE)?,
                Some(_) => root.remove_file(PLACE)?,
                None => {}
            }
            ran?;
        }
        Ok(())
    }

    async fn one(&self, request: &Request, script: &Script) -> Result<(), OpError> {
        let name = request.name.as_str();
        let registered = self.bus.registered(name).await?;
        let refused = |error: EnterError| OpError::Option {
            message: format!("cannot run the script '{}': {error}", script.name),
            hint: "nothing is left of the machine".to_owned(),
        };
        let gone = || OpError::NotRunning { name: name.to_owned() };
        let leader = Leader::open(registered.leader).ok_or_else(gone)?;
        let program = Program {
            command: script.command(),
            env: Vec::new(),
            user: enter::user_of(&leader, "root").map_err(refused)?,
            directory: Some("/".into()),
            streams: Streams::Pipes,
        };
        let mut running = enter::start(&leader, &registered.unit, &program)
            .await
            .map_err(refused)?;
        let ended = Ended::new().map_err(OpError::path("watch", "a script"))?;
        let mut relays = Vec::new();
        if let Ends::Pipes { stdin, stdout, stderr } = running.take_ends() {
            // It has nothing to read.
            drop(stdin);
            for output in [stdout, stderr] {
                let hear = self.hear.clone();
                let ended = ended.try_clone().map_err(OpError::path("watch", "a script"))?;
                relays.push(read_lines(output, ended, move |line| {
                    hear(line);
                    Ok(())
                }));
            }
        }
        let exit = {
            let mut exit = std::pin::pin!(running.wait());
            loop {
                tokio::select! {
                    exit = &mut exit => break exit.map_err(refused)?,
                    () = tokio::time::sleep(LOOK) => {
                        if let Err(cancelled) = self.cancel.check() {
                            // The machine's end waits until whoever is in it has been waited for.
                            running.signal(Signal::KILL).await;
                            exit.await.map_err(refused)?;
                            return Err(cancelled.into());
                        }
                    }
                }
            }
        };
        ended.set();
        for relay in relays {
            // All that it wrote has been heard then.
            let _ = relay.await;
        }
        match exit.code() {
            0 => Ok(()),
            code => Err(OpError::Option {
                message: format!("script '{}' ended with status {code}", script.name),
                hint: "nothing is left of the machine: mend the script, and create it again".to_owned(),
            }),
        }
    }
}

/// A machine that waits for what enters it.
fn of_run(request: &Request, tree: &Path) -> run::Request {
    let network = if request.scripts_have_network {
        Network::Host
    } else {
        Network::None
    };
    let own = request
        .settings
        .iter()
        .filter(|setting| setting.key.section != "Network");
    let mut edits: Vec<Edit> = own.cloned().map(Assignment::into_edit).collect();
    let of_network = network.settings().into_iter();
    edits.extend(of_network.map(|(key, value)| Edit::set("Network", key, value)));
    edits.push(Edit::set("Exec", "ResolvConf", "off".to_owned()));
    run::Request {
        name: request.name.clone(),
        like: request.name.clone(),
        copy: Some(tree.to_owned()),
        view: None,
        vanishes: None,
        boots: false,
        edits,
        limits: Vec::new(),
        at_most: None,
    }
}

/// What /etc/resolv.conf of the machine is while its scripts see the host's.
enum ResolvConf {
    Nothing,
    Link(PathBuf),
    File(Vec<u8>),
}

impl ResolvConf {
    /// Puts the host's in its place.
    fn replace(root: &Root) -> Result<(Self, Vec<u8>), OpError> {
        let own = match root.kind(RESOLV_CONF)? {
            Some(Kind::Symlink) => Self::Link(root.read_link(RESOLV_CONF)?),
            Some(Kind::File) => Self::File(root.read(RESOLV_CONF, MAX)?),
            _ => Self::Nothing,
        };
        // A host without one has no names to resolve.
        let host = read_regular(&Path::new("/").join(RESOLV_CONF), MAX).unwrap_or_default();
        root.write(RESOLV_CONF, &host, 0o644)?;
        Ok((own, host))
    }

    /// Puts it back, unless a script has made another.
    fn restore(self, root: &Root, host: &[u8]) -> Result<(), OpError> {
        if root.kind(RESOLV_CONF)? != Some(Kind::File) || root.read(RESOLV_CONF, MAX)? != host {
            return Ok(());
        }
        root.remove_file(RESOLV_CONF)?;
        match self {
            Self::Nothing => {}
            Self::Link(target) => root.symlink(target, RESOLV_CONF)?,
            Self::File(bytes) => root.write(RESOLV_CONF, &bytes, 0o644)?,
        }
        Ok(())
    }
}
