//! Appending to a sink's stream and moving its cursor, in one step.
