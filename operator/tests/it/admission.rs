//! Objects that admission refuses, and containers that others add to pods.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, ResourceQuota},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::json;

use crate::world::{World, condition, conditions, eventually, so};

async fn jobs(world: &World) -> Vec<String> {
    world.api::<Job>().list(&ListParams::default()).await.unwrap().items.iter().map(|job| job.name_any()).collect()
}

/// Creates a quota with its status, which no controller fills here.
async fn limit_cpu(world: &World) {
    let quotas = world.api::<ResourceQuota>();
    let hard = json!({ "limits.cpu": "4" });
    let quota = json!({ "metadata": { "name": "cpu" }, "spec": { "hard": hard } });
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    let status = json!({ "status": { "hard": hard, "used": { "limits.cpu": "0" } } });
    quotas.patch_status("cpu", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let pod =
        json!({ "metadata": { "generateName": "try-" }, "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    wait_for_refusal(world, &pod).await;
}

/// Creates a policy as of a cluster that gives each namespace a range of user ids; returns its name.
async fn limit_users(world: &World) -> String {
    let name = format!("uid-{}", world.namespace);
    let here = json!({ "matchLabels": { "kubernetes.io/metadata.name": world.namespace } });
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": name },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }],
                "namespaceSelector": here,
            },
            "validations": [{
                "expression": "!has(object.spec.securityContext) || !has(object.spec.securityContext.runAsUser) || object.spec.securityContext.runAsUser >= 1000700000",
                "message": "runAsUser must be in the range 1000700000-1000709999",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": name },
        "spec": { "policyName": name, "validationActions": ["Deny"], "matchResources": { "namespaceSelector": here } },
    });
    for object in [policy, binding] {
        let api = cluster_wide(world, object["kind"].as_str().unwrap());
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }
    let pod = json!({
        "metadata": { "generateName": "try-" },
        "spec": { "securityContext": { "runAsUser": 1 }, "containers": [{ "name": "a", "image": "a" }] },
    });
    wait_for_refusal(world, &pod).await;
    name
}

fn cluster_wide(world: &World, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let plural =
        if kind.kind.ends_with("Policy") { "validatingadmissionpolicies" } else { "validatingadmissionpolicybindings" };
    Api::all_with(world.client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// Waits until the API server refuses a pod.
async fn wait_for_refusal(world: &World, pod: &serde_json::Value) {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the rule is active", async || {
        so(world.api::<Pod>().create(&dry, &pod).await.is_err(), || "the pod was accepted".to_owned())
    })
    .await;
}

/// The Job may take 600 s: a changed pod must not wait for them.
#[tokio::test]
async fn a_quota_that_refuses_the_migration_is_named_and_a_fix_works_at_once() {
    let world = World::new("quota").await;
    limit_cpu(&world).await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    let refused = world.waits("payments", "Migrated", "False", "QuotaExceeded").await;
    let message = condition(&refused, "Migrated").unwrap().message;
    let job = jobs(&world).await.remove(0);
    assert!(message.contains(&job) && message.contains("must specify limits.cpu"), "{message}");
    let stalled = condition(&refused, "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "QuotaExceeded"));
    assert_eq!(condition(&refused, "Reconciling").unwrap().status, "False");
    assert_eq!(refused.status.unwrap().observed_generation, Some(1), "kstatus would read it as progress");

    let before = world.api::<Job>().get(&job).await.unwrap();
    let limited = json!({ "pod": { "resources": { "limits": { "cpu": "1" } } } });
    let generation = world.change("payments", json!({ "spec": { "work": limited, "serve": limited } })).await;
    world.ready("payments", generation).await;
    let after = world.api::<Job>().get(&job).await.unwrap();
    assert_ne!(after.uid(), before.uid(), "it was replaced");
    assert_eq!(condition(&world.get("payments").await, "Stalled").unwrap().status, "False");
}

#[tokio::test]
async fn a_policy_on_user_ids_is_named_and_pods_without_ids_are_accepted() {
    let world = World::new("users").await;
    let policy = limit_users(&world).await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    let refused = world.waits("payments", "Migrated", "False", "PolicyDenied").await;
    let message = condition(&refused, "Migrated").unwrap().message;
    assert!(message.starts_with("Job payments-migrate-"), "{message}");
    assert!(message.contains("runAsUser must be in the range 1000700000-1000709999"), "{message}");

    let free = json!({ "pod": { "fixedUser": false } });
    world.change("payments", json!({ "spec": { "work": free } })).await;
    world.waits("payments", "Migrated", "True", "").await;
    let refused = world.waits("payments", "Degraded", "True", "PolicyDenied").await;
    let message = condition(&refused, "Degraded").unwrap().message;
    assert!(message.starts_with("Deployment payments-serve: "), "{message}");
    assert!(message.contains("runAsUser must be in the range"), "{message}");
    let generation = world.change("payments", json!({ "spec": { "serve": free } })).await;
    let ready = world.ready("payments", generation).await;
    assert_eq!(condition(&ready, "Reconciling").unwrap().status, "False", "{:?}", conditions(&ready));
    for kind in ["ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"] {
        cluster_wide(&world, kind).delete(&policy, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_sidecar_that_never_ends_blocks_neither_migration_nor_purge() {
    let world = World::new("sidecar").await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| {
        behaviour.sidecar = true;
        behaviour.job_ends.push_back(("Migrated", "", 2));
    });
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "deletionPolicy": "Purge" })).await;
    world.ready("payments", 1).await;
    eventually("the Jobs are deleted, and the status holds the contracting steps", async || {
        let migrated = world.get("payments").await.status.unwrap_or_default().migrated.unwrap_or_default();
        let jobs = jobs(&world).await;
        so(migrated.contract == 0 && jobs.is_empty(), || format!("{migrated:?} {jobs:?}"))
    })
    .await;
    world.two_reconciles(&operator).await;
    let created = operator.log().matches("apply.job.created").count();
    assert_eq!(created, 2, "one migrates and one contracts: {}", operator.log());
    assert!(jobs(&world).await.is_empty(), "a Job was created again");
    world.ready("payments", 1).await;
    world.pipelines().delete("payments", &DeleteParams::background()).await.unwrap();
    world.gone("payments").await;
}
