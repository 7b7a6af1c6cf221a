//! Checks a model, and says how large it was.

use millrace_model::{config::Config, protocol::Protocol};
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// Looks at every state, or up to the first violation. Answers what is violated, each with the steps that lead there.
pub(crate) fn check(name: &str, config: Config) -> Vec<(&'static str, String)> {
    let checker = Protocol::new(config).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    let found = checker.discoveries();
    println!("{name}: {states} states, depth {depth}, violated: {:?}", found.keys().collect::<Vec<_>>());
    found.into_iter().map(|(property, path)| (property, format!("{:?}", path.into_actions()))).collect()
}

/// Looks at every state: nothing is violated.
pub(crate) fn holds(name: &str, config: Config) {
    let violated = check(name, config);
    assert!(violated.is_empty(), "{name}: {violated:#?}");
}
