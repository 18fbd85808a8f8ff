//! Tables, JSON and progress: the only place that prints.
