//! `on` or `off`, as the last word of a command line.

/// A state that is switched.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum OnOff {
    On,
    Off,
}

impl OnOff {
    /// Whether it is to be so.
    pub(super) fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}
