//! A terminal with somebody at it: what he types, and what he sees.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::support::{PATIENCE, holds_within, wait_until};

/// A program that has a terminal of its own.
pub(crate) struct Terminal {
    master: File,
    child: Child,
    shown: Arc<Mutex<String>>,
    /// How many bytes were not kept, once nothing is kept any more.
    forgotten: Arc<Mutex<Option<u64>>>,
    /// How much of it was read by [`Terminal::sees`].
    read: usize,
}

impl Terminal {
    /// Starts `machinist` with these words.
    #[track_caller]
    pub(crate) fn machinist<const N: usize>(words: [&str; N]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = File::from(ioctl_tiocgptpeer(&master, flags).unwrap());
        let master = File::from(master);
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", "machinist"])
            .args(words)
            .env("TERM", "xterm")
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave))
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let forgotten: Arc<Mutex<Option<u64>>> = Arc::default();
        let (mut from, into) = (master.try_clone().unwrap(), Arc::clone(&shown));
        let counted = Arc::clone(&forgotten);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer) {
                    Ok(count @ 1..) => match &mut *counted.lock().unwrap() {
                        Some(forgotten) => *forgotten += count as u64,
                        None => into
                            .lock()
                            .unwrap()
                            .push_str(&String::from_utf8_lossy(&buffer[..count])),
                    },
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => break,
                }
            }
        });
        Self {
            master,
            child,
            shown,
            forgotten,
            read: 0,
        }
    }

    /// Keeps nothing of what is shown from now on.
    pub(crate) fn forgets(&self) {
        *self.forgotten.lock().unwrap() = Some(0);
    }

    /// How much was shown since then, in bytes.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten.lock().unwrap().unwrap_or(0)
    }

    /// The program's process: setsid becomes it.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// All that was shown.
    pub(crate) fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// Waits for a text after what was seen before.
    #[track_caller]
    pub(crate) fn sees(&mut self, text: &str) -> &mut Self {
        let mut found = None;
        let in_time = holds_within(PATIENCE, || {
            found = self.shown.lock().unwrap()[self.read..].find(text);
            found.is_some()
        });
        assert!(in_time, "no {text:?} in {:?}", &self.shown()[self.read..]);
        self.read += found.unwrap() + text.len();
        self
    }

    pub(crate) fn types(&mut self, text: &str) -> &mut Self {
        self.master.write_all(text.as_bytes()).unwrap();
        self
    }

    /// Types it again and again until it has this effect: a new size reaches a session when it does, and a shell that hears of
    /// it while a line comes may lose that line.
    #[track_caller]
    pub(crate) fn types_until(&mut self, text: &str, effect: &str) -> &mut Self {
        let again = Duration::from_secs(3);
        for _ in 0..10 {
            self.types(text);
            if holds_within(again, || self.shown.lock().unwrap()[self.read..].contains(effect)) {
                break;
            }
        }
        self.sees(effect)
    }

    pub(crate) fn resize(&mut self, rows: u16, columns: u16) -> &mut Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
        self
    }

    /// Whether what is typed is shown by the terminal itself: not while it is raw.
    pub(crate) fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.master).unwrap().local_modes;
        modes.contains(rustix::termios::LocalModes::ECHO)
    }

    /// Waits for the end of the program: its exit status.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> i32 {
        let mut status = None;
        wait_until(&format!("the program ends, after {:?}", self.shown()), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
