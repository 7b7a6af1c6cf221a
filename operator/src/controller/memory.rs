//! What is held of a pipeline between reconciles; all of it can be found out again.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use millrace_crds::RecordPipelineStatus;

use super::{autoscale::Scaler, build::Kind, refusal::Looked};
use crate::{backoff::doubled, facts::Facts};

/// Pods are touched this long after they were touched first; doubled each time.
const FIRST_TOUCH: Duration = Duration::from_millis(500);
const LONGEST_TOUCH: Duration = Duration::from_secs(60);

/// What is held.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Since when there is anything to hold.
    pub(crate) born: Instant,
    /// The uid that all of this is of.
    pub(crate) uid: String,
    /// What was applied: a hash of it, and the resource version that came back.
    pub(crate) applied: HashMap<(Kind, String), ([u8; 32], String)>,
    /// What the pods said.
    pub(crate) facts: Facts,
    /// What the Events say of Jobs that have no pod, by the Job's uid.
    pub(crate) looked: HashMap<String, Looked>,
    /// What was asked of the workers' number.
    pub(crate) scaler: Option<Scaler>,
    /// When the pods' files were pushed along.
    pub(crate) touches: BTreeMap<String, Touch>,
    /// The status that was written last, and when.
    pub(crate) written: Option<(RecordPipelineStatus, Instant)>,
    /// When the Deployments were last seen to be incomplete.
    pub(crate) rolled: Option<Instant>,
    /// When all shards were last seen to be worked.
    pub(crate) all_worked: Option<Instant>,
    /// Since when pods miss the schema.
    pub(crate) not_migrated: Option<Timestamp>,
    /// Whether it was said that draining was given up.
    pub(crate) given_up: bool,
    /// Since when no pod of serve has been there, while draining.
    pub(crate) serve_gone: Option<Instant>,
    /// Reconciles that failed since the last that did not.
    pub(crate) failures: u32,
}

/// How often a pod was touched for one purpose.
#[derive(Debug, Clone)]
pub(crate) struct Touch {
    /// What for: another purpose begins again.
    pub(crate) purpose: String,
    /// How often.
    pub(crate) count: u32,
    /// When it is time again.
    pub(crate) due: Instant,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            uid: String::new(),
            applied: HashMap::new(),
            facts: Facts::default(),
            looked: HashMap::new(),
            scaler: None,
            touches: BTreeMap::new(),
            written: None,
            rolled: None,
            all_worked: None,
            not_migrated: None,
            given_up: false,
            serve_gone: None,
            failures: 0,
        }
    }
}

impl Memory {
    /// Begins again when the resource was recreated.
    pub(crate) fn of_uid(&mut self, uid: &str) {
        if self.uid != uid {
            *self = Self { uid: uid.to_owned(), ..Self::default() };
        }
    }

    /// The status as it stands: what was written last, for the cache may be behind it; else what the API server has.
    pub(crate) fn stood<'a>(&'a self, cached: &'a RecordPipelineStatus) -> &'a RecordPipelineStatus {
        self.written.as_ref().map_or(cached, |(written, _)| written)
    }

    /// Whether a pod is to be touched now for a purpose; counts it when so.
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
    fn touches_come_less_and_less_often_until_the_purpose_changes() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(memory.touch("pod", "generation 2", after(0)), Some(1));
        assert_eq!(memory.touch("pod", "generation 2", after(499)), None);
        assert_eq!(memory.touch("pod", "generation 2", after(500)), Some(2));
        assert_eq!(memory.touch("pod", "generation 2", after(1_499)), None);
        assert_eq!(memory.touch("pod", "generation 2", after(1_500)), Some(3));
        assert_eq!(memory.touch("pod", "generation 3", after(1_501)), Some(1));
        assert_eq!(memory.touch("other", "generation 3", after(1_501)), Some(1));
    }
}
