//! The operator's state of a pipeline between reconciles. A process that starts without it derives it again.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use millrace_crds::RecordPipelineStatus;

use super::{autoscale::Scaler, build::Kind, refusal::LastRefusal};
use crate::{backoff::doubled, clock::Now, facts::Facts};

/// The time between the first and the second touch of a pod; doubled each time.
const FIRST_TOUCH: Duration = Duration::from_millis(500);
const LONGEST_TOUCH: Duration = Duration::from_secs(60);

/// The operator's state of a pipeline between reconciles.
#[derive(Debug)]
pub(crate) struct Memory {
    /// When it was created.
    pub(crate) created: Instant,
    /// The uid of the resource that it belongs to.
    pub(crate) uid: String,
    /// By child: a hash of the applied object, and the resource version that the API server returned.
    pub(crate) applied: HashMap<(Kind, String), ([u8; 32], String)>,
    /// The pods' last responses.
    pub(crate) facts: Facts,
    /// The refusals in the Events about Jobs that have no pod, by the Job's uid.
    pub(crate) refusals: HashMap<String, LastRefusal>,
    /// The numbers of workers that were wanted lately.
    pub(crate) scaler: Option<Scaler>,
    /// The touches of pods, by the pod's name.
    pub(crate) touches: BTreeMap<String, Touch>,
    /// The status that was written last, and when.
    pub(crate) written: Option<(RecordPipelineStatus, Instant)>,
    /// When the rollout was last seen to be incomplete.
    pub(crate) incomplete_at: Option<Instant>,
    /// When all shards were last seen to have an owner.
    pub(crate) all_owned_at: Option<Instant>,
    /// Since when pods report that the schema is missing.
    pub(crate) not_migrated: Option<Timestamp>,
    /// Whether an Event reported that the drain ended early.
    pub(crate) reported_not_drained: bool,
    /// Since when a pipeline that drains has no pod of serve.
    pub(crate) no_serve_since: Option<Instant>,
    /// Reconciles that failed since the last success.
    pub(crate) failures: u32,
}

/// The touches of a pod for one purpose.
#[derive(Debug, Clone)]
pub(crate) struct Touch {
    /// The purpose; with another one the count starts again.
    pub(crate) purpose: String,
    /// The number of touches.
    pub(crate) count: u32,
    /// When the next touch is due.
    pub(crate) due: Instant,
}

impl Memory {
    /// A memory that holds nothing yet, of the resource with this uid.
    pub(crate) fn new(uid: String, now: Now) -> Self {
        Self {
            created: now.instant,
            uid,
            applied: HashMap::new(),
            facts: Facts::default(),
            refusals: HashMap::new(),
            scaler: None,
            touches: BTreeMap::new(),
            written: None,
            incomplete_at: None,
            all_owned_at: None,
            not_migrated: None,
            reported_not_drained: false,
            no_serve_since: None,
            failures: 0,
        }
    }

    /// Starts again when the resource was recreated.
    pub(crate) fn reset_for(&mut self, uid: &str, now: Now) {
        if self.uid != uid {
            *self = Self::new(uid.to_owned(), now);
        }
    }

    /// The current status: the one that was written last, for the cache may be behind it, else the cached one.
    pub(crate) fn current_status<'a>(&'a self, cached: &'a RecordPipelineStatus) -> &'a RecordPipelineStatus {
        self.written.as_ref().map_or(cached, |(written, _)| written)
    }

    /// Counts a touch of a pod for a purpose and returns the count; `None` while no touch is due.
    pub(crate) fn touch(&mut self, pod: &str, purpose: &str, now: Instant) -> Option<u32> {
        let touch = self.touches.get(pod).filter(|touch| touch.purpose == purpose);
        if touch.is_some_and(|touch| now < touch.due) {
            return None;
        }
        let count = touch.map_or(0, |touch| touch.count) + 1;
        let pause = doubled(FIRST_TOUCH, count - 1, LONGEST_TOUCH);
        self.touches.insert(pod.to_owned(), Touch { purpose: purpose.to_owned(), count, due: now + pause });
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touches_are_due_less_and_less_often_until_the_purpose_changes() {
        let start = Now::read();
        let mut memory = Memory::new("u".to_owned(), start);
        let after = |ms| start.instant + Duration::from_millis(ms);
        assert_eq!(memory.touch("pod", "generation 2", after(0)), Some(1));
        assert_eq!(memory.touch("pod", "generation 2", after(499)), None);
        assert_eq!(memory.touch("pod", "generation 2", after(500)), Some(2));
        assert_eq!(memory.touch("pod", "generation 2", after(1_499)), None);
        assert_eq!(memory.touch("pod", "generation 2", after(1_500)), Some(3));
        assert_eq!(memory.touch("pod", "generation 3", after(1_501)), Some(1));
        assert_eq!(memory.touch("other", "generation 3", after(1_501)), Some(1));
    }
}
