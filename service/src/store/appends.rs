//! What each serve process knows of its appends.
