//! What a running machine uses, and what it may use, as `top` shows it; also its JSON schema.

/// What a machine uses. What may not be read, or is not counted on this host, is `None`; so is a limit that there is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// When it was read, in µs since 1970.
    pub time: u64,
    /// Its name.
    pub name: String,
    /// CPU time of each second, in µs: 1,000,000 is one CPU.
    pub cpu: Option<u64>,
    /// The most of that.
    pub cpu_limit: Option<u64>,
    /// CPU time since the machine was started, in µs.
    pub cpu_total: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// The most of that.
    pub memory_limit: Option<u64>,
    /// Tasks.
    pub tasks: Option<u64>,
    /// The most of them.
    pub tasks_limit: Option<u64>,
    /// Bytes read from disks each second.
    pub io_read: Option<u64>,
    /// Bytes written to disks each second.
    pub io_write: Option<u64>,
    /// Bytes that the machine received each second.
    pub net_rx: Option<u64>,
    /// Bytes that it sent each second.
    pub net_tx: Option<u64>,
}

/// How much a count has grown each second, in that many µs; `None` where it was not known before, or began anew.
#[must_use]
pub fn rate(before: Option<u64>, now: Option<u64>, micros: u128) -> Option<u64> {
    let grown = now?.checked_sub(before?)?;
    u64::try_from((u128::from(grown) * 1_000_000).checked_div(micros)?).ok()
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn a_rate_is_of_a_second() {
        assert_eq!(rate(Some(100), Some(350), 500_000), Some(500));
        assert_eq!(rate(Some(0), Some(u64::MAX), 1_000_000), Some(u64::MAX));
        assert_eq!(rate(Some(0), Some(u64::MAX), 1), None);
        assert_eq!(rate(None, Some(1), 1), None);
        assert_eq!(rate(Some(1), None, 1), None);
        assert_eq!(rate(Some(2), Some(1), 1), None);
        assert_eq!(rate(Some(1), Some(1), 0), None);
    }
}
