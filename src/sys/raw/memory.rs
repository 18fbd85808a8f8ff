//! Memory of this process: see malloc_trim(3).

/// Gives back to the kernel what was freed; the C library keeps it otherwise for as long as the process lives.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, locks what it looks at, and leaves what is in use where it is.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
