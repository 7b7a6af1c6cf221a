//! Several APIs as one document.
//!
//! Each API describes its own paths; where two share one (`/records` takes POST from one and GET from the other), the
//! document would name the path twice, which JSON forbids.

use std::collections::HashMap;

use poem::{endpoint::BoxEndpoint, http::Method};
use poem_openapi::{
    OpenApi,
    registry::{MetaApi, MetaPath, Registry},
};

use super::standby;

/// APIs whose shared paths stand in the document once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Merged<T>(pub(crate) T);

impl<T: OpenApi> OpenApi for Merged<T> {
    fn meta() -> Vec<MetaApi> {
        let mut paths: Vec<MetaPath> = Vec::new();
        for path in T::meta().into_iter().flat_map(|api| api.paths) {
            match paths.iter_mut().find(|known| known.path == path.path) {
                Some(known) => known.operations.extend(path.operations),
                None => paths.push(path),
            }
        }
        paths.sort_by(|a, b| a.path.cmp(&b.path));
        for operation in paths.iter_mut().flat_map(|path| path.operations.iter_mut()) {
            let mut seen = Vec::new();
            operation.responses.responses.retain(|response| {
                let new = !seen.contains(&response.status);
                seen.push(response.status);
                new
            });
        }
        standby::document(&mut paths);
        vec![MetaApi { paths }]
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn add_routes(self, route_table: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {
        self.0.add_routes(route_table);
    }
}
