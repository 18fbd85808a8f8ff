//! Use cases that change something: observe, plan, act, undo on failure.
