//! `POST /sinks/{name}/resume`: a sink that is halted or disabled starts again.

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
};
use serde::Serialize;

use super::{Tags, answer::Answer, types::Word};
use crate::{
    http::{App, auth::Administrator, problem::Failure},
    publish::{ResumeError, ResumeFrom, resume_sink},
};

/// A sink that starts again.
#[derive(Debug, Object, Serialize)]
pub(super) struct SinkAction {
    /// The sink.
    pub name: String,
    /// `resumed`.
    pub status: String,
}

/// `/sinks`.
#[derive(Debug)]
pub struct SinksApi;

#[OpenApi(tag = "Tags::Pipeline")]
impl SinksApi {
    /// Resume a sink
    ///
    /// As `millrace sinks resume`. The workers read the change within seconds.
    #[oai(path = "/sinks/:name/resume", method = "post", operation_id = "resumeSink")]
    async fn resume(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// The name of the sink.
        name: Path<Word>,
        /// Where a halted sink starts, whose position is lost. Absent: a disabled webhook continues at its position.
        from: Query<Option<ResumeFrom>>,
        /// `true`: start from the beginning although the stream still has entries. Readers see their ids again.
        #[oai(default)]
        repeat: Query<bool>,
    ) -> Result<Answer<SinkAction, 202>, Failure> {
        let name = name.0.0.as_str();
        resume_sink(&app.store, &app.streams, name, from.0, repeat.0, &caller.0).await.map_err(failure)?;
        let actor = &caller.0.name;
        tracing::info!(event = "query.sink.resumed", sink = name, %actor, "resumed a sink");
        Ok(Answer(SinkAction { name: name.to_owned(), status: "resumed".to_owned() }))
    }
}

fn failure(error: ResumeError) -> Failure {
    match error {
        ResumeError::Store(error) => error.into(),
        ResumeError::Streams(error) => error.into(),
        ResumeError::Unknown { .. } => Failure::new(404, "not_found", error.to_string()),
        ResumeError::Runs(_)
        | ResumeError::FromMissing(_)
        | ResumeError::HasEntries { .. }
        | ResumeError::Removed(_) => Failure::new(409, "sink_not_resumable", error.to_string()),
    }
}
