//! Checks a model, and prints its size.

use millrace_model::{config::Config, protocol::Protocol};
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// Checks every state, or up to a violation of one of these properties, or of any where there are none. Returns the violated
/// properties, each with the steps that lead there.
pub(crate) fn check(name: &str, config: Config, properties: &[&'static str]) -> Vec<(&'static str, String)> {
    let any = || HasDiscoveries::AnyOf(properties.iter().copied().collect());
    let until = if properties.is_empty() { HasDiscoveries::AnyFailures } else { any() };
    let checker = Protocol::new(config).checker().finish_when(until).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    let found = checker.discoveries();
    println!("{name}: {states} states, depth {depth}, violated: {:?}", found.keys().collect::<Vec<_>>());
    found.into_iter().map(|(property, path)| (property, format!("{:?}", path.into_actions()))).collect()
}

/// Checks every state: no property is violated.
pub(crate) fn holds(name: &str, config: Config) {
    let violated = check(name, config, &[]);
    assert!(violated.is_empty(), "{name}: {violated:#?}");
}
