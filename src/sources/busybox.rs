//! busybox
