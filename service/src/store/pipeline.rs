//! Whose schema this is, and the policies that were in force.
