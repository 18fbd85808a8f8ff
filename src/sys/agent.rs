//! A text agent for polkit: without one, a question to an ordinary user on a terminal is simply refused.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use super::process::start_beside;

/// A running `pkttyagent`; ends with this value.
#[derive(Debug)]
pub struct Agent(duct::Handle);

impl Agent {
    /// Whether there is a terminal to ask on.
    #[must_use]
    pub fn has_terminal() -> bool {
        std::io::stdin().is_terminal() && Path::new("/dev/tty").exists()
    }

    /// Starts it and waits until polkit knows it; `None` if there is none to start. Blocks.
    ///
    /// It closes its standard output, which is its notify descriptor here, once it is registered.
    #[must_use]
    pub fn start() -> Option<Self> {
        let process = std::process::id().to_string();
        let arguments = ["--process", &process, "--notify-fd", "1", "--fallback"];
        let (handle, mut notify) = start_beside("pkttyagent", &arguments).ok()?;
        // Whatever comes, the end of it counts: registered, or gone.
        let _ = notify.read(&mut [0_u8; 1]);
        Some(Self(handle))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}
