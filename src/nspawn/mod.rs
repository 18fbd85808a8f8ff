//! The .nspawn file of systemd.nspawn(5): a lossless document, its schema, edits as values. No I/O.
