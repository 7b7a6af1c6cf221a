//! Creates and removes the Jobs of a pipeline's migration as [`migration`] decides.

use k8s_openapi::jiff::Timestamp;

use super::{
    apply::{self, Error},
    build,
    dereference::{PodSeen, Seen},
    memory::Memory,
    migration::{self, Attempt, MigrationState},
    reconcile::{Pass, collect},
};
use crate::facts::Problem;

impl Pass<'_> {
    /// Takes the next step of the migration, and returns its state.
    pub(super) async fn migrate(
        &self,
        memory: &mut Memory,
        seen: &Seen,
        image: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<MigrationState, Error> {
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
        let migrated = memory.current_status(&self.cached_status).migrated.clone();
        let mut state = migration::decide(&key, &seen.migrations, migrated.as_ref(), memory.not_migrated, now);
        if let MigrationState::Create(number) = state {
            let job = build::migration(pipeline, image, &key, number, false);
            let known = problems.len();
            collect(problems, apply::create_job(context, self.owner(), &job).await)?;
            if let Some(refused) = problems.get(known) {
                state = MigrationState::Running(Some(refused.clone()));
            }
        }
        let wanted = |attempt: &Attempt| {
            let contracts = attempt.key == contract;
            let key = if contracts { &contract } else { &key };
            build::template_hash(&build::migration(pipeline, image, key, attempt.number, contracts))
        };
        let replaceable = seen
            .migrations
            .iter()
            .filter(|attempt| [&key, &contract].contains(&&attempt.key) && attempt.is_replaceable(&wanted(attempt)));
        // While pods miss the schema, the Job shows when it was last migrated.
        let lingering = if missing {
            Vec::new()
        } else {
            migration::lingering(&key, &contract, &seen.migrations, migrated.as_ref())
        };
        let outdated = migration::outdated(&[&key, &contract], &seen.migrations, state.is_done());
        for old in outdated.into_iter().chain(lingering).chain(replaceable) {
            if let Some(meta) = seen.jobs.get(&old.name) {
                apply::delete(context, self.owner(), build::Kind::Job, &old.name, meta).await?;
            }
        }
        Ok(state)
    }

    /// Runs the contracting steps once no pod of an older image exists.
    pub(super) async fn contract(
        &self,
        seen: &Seen,
        image: &str,
        state: &MigrationState,
        problems: &mut Vec<Problem>,
    ) -> Result<(), Error> {
        // A Deployment does not count pods that are being deleted, and the cache may hold it before its pods.
        let is_old = |pod: &PodSeen| pod.deleting || pod.image != image;
        if !matches!(state, MigrationState::Done { contract: 1.. }) || seen.pods.iter().any(is_old) {
            return Ok(());
        }
        let key = build::migration_key(self.pipeline, image, true);
        match migration::decide(&key, &seen.migrations, None, None, Timestamp::now()) {
            MigrationState::Create(number) => {
                let job = build::migration(self.pipeline, image, &key, number, true);
                collect(problems, apply::create_job(self.context, self.owner(), &job).await)
            }
            MigrationState::Failed { problem, .. } | MigrationState::Running(Some(problem)) => {
                problems.push(problem);
                Ok(())
            }
            MigrationState::Done { .. } | MigrationState::Running(None) => Ok(()),
        }
    }
}
