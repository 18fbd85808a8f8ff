//! Files that belong to others: opened by openat2(2) inside a root, read with a cap, written atomically.
