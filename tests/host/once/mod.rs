//! What does not depend on systemd's version: bad input, faults, races, large numbers. `make check` runs these on one
//! suite; `tests/host/run` on all it is told.

mod clean;
mod clone_bad;
mod cp;
mod create_bad;
mod disk_bad;
mod exec_caller;
mod exec_faults;
mod export_bad;
mod export_disk_bad;
mod export_oci_bad;
mod export_raw_bad;
mod images;
mod kill;
mod limit_bad;
mod linked_bad;
mod logs_bad;
mod many;
mod oci_bad;
mod places;
mod quota;
mod rename_bad;
mod secret_bad;
mod storage;
mod trust_bad;
pub(crate) mod users;
mod wait_faults;
