//! Copies compare equal.
