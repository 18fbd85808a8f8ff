//! Child programs: the one place that starts any.
