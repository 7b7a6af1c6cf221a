//! `GET /policies`: the policy versions that were ever active.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Tags,
    answer::{Answer, Page, Paging},
    types::{RawJson, Time},
};
use crate::{
    http::{App, auth::ReaderOfAll, problem::Failure},
    store::ListedPolicy,
};

/// A policy version.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyVersion {
    /// Its number, which rises.
    pub version: i64,
    /// The uid of its manifest; of a local file the id of the pipeline.
    pub uid: String,
    /// The generation of that manifest.
    pub generation: i64,
    /// When it was registered.
    pub registered_at: Time,
    /// The `spec` of the manifest, with defaults.
    pub spec: RawJson,
}

impl From<ListedPolicy> for PolicyVersion {
    fn from(policy: ListedPolicy) -> Self {
        let ListedPolicy { version, uid, generation, spec, registered_at } = policy;
        // It was written as JSON.
        let spec = RawJson(RawValue::from_string(spec).unwrap_or_default());
        Self { version, uid, generation, registered_at: Time(registered_at), spec }
    }
}

/// `/policies`.
#[derive(Debug)]
pub struct PoliciesApi;

#[OpenApi(tag = "Tags::Pipeline")]
impl PoliciesApi {
    /// List policy versions
    ///
    /// From the newest one down. A version never changes.
    #[oai(path = "/policies", method = "get", operation_id = "listPolicies")]
    async fn list(
        &self,
        app: Data<&App>,
        _reader: ReaderOfAll,
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<PolicyVersion>>, Failure> {
        let paging = Paging::<i64>::new("/policies", &(), cursor.0, limit.0)?;
        let rows = app.store.list_policies(paging.after, paging.rows()).await?;
        Ok(Answer(paging.page(rows, |policy| policy.version, PolicyVersion::from)))
    }
}
