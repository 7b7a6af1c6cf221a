//! The Jobs of a pipeline's migration: makes and removes them as [`migration`] judges.

use k8s_openapi::jiff::Timestamp;

use super::{
    apply::{self, Error},
    build,
    dereference::{PodSeen, Seen},
    memory::Memory,
    migration::{self, Attempt, Stand},
    reconcile::{Pass, collect},
};
use crate::facts::Problem;

impl Pass<'_> {
    /// Brings the migration on, and says where it stands.
    pub(super) async fn migrate(
        &self,
        memory: &mut Memory,
        seen: &Seen,
        image: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<Stand, Error> {
        let (context, pipeline) = (self.context, self.pipeline);
        let key = build::migration_key(pipeline, image, false);
        let contract = build::migration_key(pipeline, image, true);
        let missing = seen
            .pods
            .iter()
            .filter_map(|pod| memory.facts.of(&pod.name))
            .any(|response| response.answer.problems.iter().any(|problem| problem.reason == "NotMigrated"));
        memory.not_migrated = missing.then(|| memory.not_migrated.unwrap_or_else(Timestamp::now));
        let now = Timestamp::now();
        // What was written last: the cache may be behind it.
        let migrated = memory.stood(&self.stood).migrated.clone();
        let mut stand = migration::judge(&key, &seen.migrations, migrated.as_ref(), memory.not_migrated, now);
        if let Stand::Create(number) = stand {
            let job = build::migration(pipeline, image, &key, number, false);
            let known = problems.len();
            collect(problems, apply::create_job(context, self.owner(), &job).await)?;
            if let Some(refused) = problems.get(known) {
                stand = Stand::Running(Some(refused.clone()));
            }
        }
        let wanted = |attempt: &Attempt| {
            let contracts = attempt.key == contract;
            let key = if contracts { &contract } else { &key };
            build::template_hash(&build::migration(pipeline, image, key, attempt.number, contracts))
        };
        let outlived = seen
            .migrations
            .iter()
            .filter(|attempt| [&key, &contract].contains(&&attempt.key) && attempt.is_outlived(&wanted(attempt)));
        // While pods miss the schema the Job says that it was made a moment ago.
        let lingering = if missing {
            Vec::new()
        } else {
            migration::lingering(&key, &contract, &seen.migrations, migrated.as_ref())
        };
        let outdated = migration::outdated(&[&key, &contract], &seen.migrations, stand.is_done());
        for old in outdated.into_iter().chain(lingering).chain(outlived) {
            if let Some(meta) = seen.jobs.get(&old.name) {
                apply::delete(context, self.owner(), build::Kind::Job, &old.name, meta).await?;
            }
        }
        Ok(stand)
    }

    /// Runs contracting steps: no pod of an older image is left.
    pub(super) async fn contract(
        &self,
        seen: &Seen,
        image: &str,
        stand: &Stand,
        problems: &mut Vec<Problem>,
    ) -> Result<(), Error> {
        // A Deployment does not count pods that are about to end, and may be known before its pods are.
        let is_old = |pod: &PodSeen| pod.deleting || pod.image != image;
        if !matches!(stand, Stand::Done { contract: 1.. }) || seen.pods.iter().any(is_old) {
            return Ok(());
        }
        let key = build::migration_key(self.pipeline, image, true);
        match migration::judge(&key, &seen.migrations, None, None, Timestamp::now()) {
            Stand::Create(number) => {
                let job = build::migration(self.pipeline, image, &key, number, true);
                collect(problems, apply::create_job(self.context, self.owner(), &job).await)
            }
            Stand::Failed { problem, .. } | Stand::Running(Some(problem)) => {
                problems.push(problem);
                Ok(())
            }
            Stand::Done { .. } | Stand::Running(None) => Ok(()),
        }
    }
}
