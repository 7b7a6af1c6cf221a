//! Checks the resource: the next steps get a pipeline that breaks no rule, with everything that they need.
//!
//! It must never be made from a resource that breaks a rule: the API server would refuse the objects that are built
//! from it one by one, or worse, accept them.

use millrace_crds::{
    ACCEPT_GENERATION, ADOPT, API_VERSION, KIND, Metadata, RecordPipeline, RecordPipelineResource, RecordPipelineSpec,
    SecretKeyRef, Violation,
};

use crate::cache::Guarded;

/// A valid pipeline.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Validated {
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its uid.
    pub(crate) uid: String,
    /// The generation of the spec.
    pub(crate) generation: i64,
    /// The manifest that its pods read: only the fields that concern them.
    pub(crate) manifest: RecordPipeline,
    /// The Secret key that holds the URL of Redis.
    pub(crate) redis: SecretKeyRef,
    /// The Secret key that holds the URL of Postgres.
    pub(crate) postgres: SecretKeyRef,
    /// The whole spec.
    pub(crate) spec: RecordPipelineSpec,
}

/// The resource breaks rules. The operator waits for a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub(crate) struct Invalid {
    /// Each broken rule: its field and the remedy.
    pub(crate) violations: Vec<Violation>,
}

impl Validated {
    /// Checks a resource as the API server returned it.
    ///
    /// # Errors
    /// The cause for people: it cannot be parsed, or breaks rules.
    pub(crate) fn of(object: &Guarded) -> Result<Self, String> {
        let resource = object.0.as_ref().map_err(|error| error.error.clone())?;
        Self::new(resource).map_err(|error| error.to_string())
    }

    /// Checks a resource by the rules of the manifest and by the rules for a cluster.
    ///
    /// # Errors
    /// [`Invalid`] names every broken rule.
    pub(crate) fn new(resource: &RecordPipelineResource) -> Result<Self, Invalid> {
        let RecordPipelineResource { metadata, spec, status: _ } = resource;
        let annotations = metadata.annotations.iter().flatten();
        let mut manifest = RecordPipeline {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: Metadata {
                name: metadata.name.clone().unwrap_or_default(),
                namespace: metadata.namespace.clone(),
                uid: metadata.uid.clone(),
                generation: metadata.generation,
                annotations: annotations
                    .filter(|(name, _)| [ADOPT, ACCEPT_GENERATION].contains(&name.as_str()))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
            },
            spec: spec.clone(),
            status: None,
        };
        let mut violations = manifest.violations();
        let redis = spec.redis.as_ref().map(|redis| redis.url_secret_ref.clone());
        let postgres = spec.postgres.as_ref().map(|postgres| postgres.url_secret_ref.clone());
        for (reference, field, server) in
            [(&redis, "spec.redis.urlSecretRef", "Redis"), (&postgres, "spec.postgres.urlSecretRef", "Postgres")]
        {
            if reference.is_none() {
                violations.push(Violation {
                    field: field.to_owned(),
                    message: format!("is needed on a cluster: name the Secret and key that hold the URL of {server}"),
                });
            }
        }
        let identity = (metadata.namespace.clone(), metadata.uid.clone(), metadata.generation);
        let (Some(namespace), Some(uid), Some(generation)) = identity else {
            violations.push(Violation {
                field: "metadata".to_owned(),
                message: "has no namespace, uid or generation: only what an API server has stored can be run"
                    .to_owned(),
            });
            return Err(Invalid { violations });
        };
        let (Some(redis), Some(postgres), true) = (redis, postgres, violations.is_empty()) else {
            return Err(Invalid { violations });
        };
        manifest.spec = spec.for_pods();
        let name = manifest.metadata.name.clone();
        Ok(Self { name, namespace, uid, generation, manifest, redis, postgres, spec: spec.clone() })
    }

    /// The image that the spec names, else the default.
    #[must_use]
    pub(crate) fn image<'a>(&'a self, default: &'a str) -> &'a str {
        self.spec.image.as_deref().unwrap_or(default)
    }

    /// The `replicas` of the Deployment of serve; `None` where a HorizontalPodAutoscaler sets them.
    #[must_use]
    pub(crate) fn serve_replicas(&self) -> Option<i32> {
        let serve = self.spec.serve.as_ref();
        let scaled_by_kubernetes = serve.is_some_and(|serve| serve.autoscaling.is_some());
        let replicas = serve.and_then(|serve| serve.replicas).unwrap_or(1);
        (!scaled_by_kubernetes).then(|| i32::try_from(replicas).unwrap_or(i32::MAX))
    }
}
