//! The durations of a path's answers as a metric, by method and status.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use metrics::Histogram;
use poem::http::{Method, StatusCode};

/// One path's durations. A handle is kept for each method and status: to find it by its labels would allocate them again
/// for each request.
#[derive(Debug)]
pub(super) struct Durations {
    route: String,
    handles: RwLock<HashMap<Labels, Histogram>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Labels {
    method: &'static str,
    status: u16,
}

impl Durations {
    pub(super) fn new(route: &str) -> Self {
        Self { route: route.to_owned(), handles: RwLock::default() }
    }

    pub(super) fn record(&self, method: &Method, status: StatusCode, took: Duration) {
        let labels = Labels { method: known(method), status: status.as_u16() };
        if let Some(handle) = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&labels) {
            return handle.record(took);
        }
        let named = [
            ("route", self.route.clone()),
            ("method", labels.method.to_owned()),
            ("status", labels.status.to_string()),
        ];
        let handle = metrics::histogram!("millrace_http_request_seconds", &named);
        handle.record(took);
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(labels, handle);
    }
}

/// The method as a label. Clients can send any word.
fn known(method: &Method) -> &'static str {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
        .into_iter()
        .find(|known| method.as_str() == *known)
        .unwrap_or("other")
}
