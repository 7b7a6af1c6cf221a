//! How entries that somebody waits for were settled.
