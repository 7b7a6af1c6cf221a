//! The CronJob that runs `millrace verify` on a schedule.
//!
//! Its Jobs are Kubernetes', not the operator's: they have none of the labels by which the operator finds the Jobs of
//! migrations and purges.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, JobSpec, JobTemplateSpec};

use super::{Child, Kind, Object, Validated, metadata, pod};

/// Longest time of a run, in seconds: a run that hangs would keep all further ones from starting.
const DEADLINE_SECONDS: i64 = 24 * 3600;
/// How late a run may start, in seconds. After a longer outage of the control plane it is left out.
const LATEST_START_SECONDS: i64 = 3600;

/// The CronJob, `NAME-verify`; none without a schedule.
pub(super) fn verify(pipeline: &Validated, image: &str) -> Option<Child> {
    let schedule = pipeline.spec.verify.as_ref()?.schedule.clone();
    let name = format!("{}-verify", pipeline.name);
    let template = match pod::job(pipeline, "verify", image, &["verify"], &BTreeMap::new()) {
        Ok(template) => template,
        Err(cause) => return Some(Child::refused(Kind::CronJob, name, &cause)),
    };
    let job = JobSpec {
        backoff_limit: Some(0),
        active_deadline_seconds: Some(DEADLINE_SECONDS),
        template,
        ..JobSpec::default()
    };
    let spec = CronJobSpec {
        schedule,
        // Without it, the time zone is that of the controller manager.
        time_zone: Some("Etc/UTC".to_owned()),
        concurrency_policy: Some("Forbid".to_owned()),
        starting_deadline_seconds: Some(LATEST_START_SECONDS),
        successful_jobs_history_limit: Some(1),
        failed_jobs_history_limit: Some(3),
        // Explicit: one that somebody suspended runs again.
        suspend: Some(false),
        job_template: JobTemplateSpec { metadata: None, spec: Some(job) },
    };
    let metadata = metadata(pipeline, name, Some("verify"));
    Some(Child::new(Object::CronJob(Box::new(CronJob { metadata, spec: Some(spec), status: None }))))
}
