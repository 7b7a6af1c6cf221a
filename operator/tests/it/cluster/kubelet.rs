//! Acts as the kubelets: runs the containers of pods, and brings changes of manifests into their files.

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{PartialObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};

use super::{COMPONENT, Shared, State, now};

/// The annotation by which the operator touches a pod.
const TOUCHED: &str = "millrace.dev/touched";

impl Shared {
    /// Creates a pod from a template. `own` is the state of its own container; all others run.
    pub(super) async fn create_pod(
        &self,
        namespace: &str,
        template: &Value,
        own: Value,
        address: Option<Ipv4Addr>,
    ) -> Result<String, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"],
        });
        let pod: Pod = serde_json::from_value(pod).map_err(kube::Error::SerdeError)?;
        let name = pods.create(&PostParams::default(), &pod).await?.name_any();
        let containers = template["spec"]["containers"].as_array().unwrap();
        let component = &template["metadata"]["labels"][COMPONENT];
        let ended = own["terminated"]["exitCode"].as_i64().filter(|_| containers.len() == 1);
        let phase = ended.map_or("Running", |code| if code == 0 { "Succeeded" } else { "Failed" });
        let running = json!({ "running": { "startedAt": now() } });
        let status = |of: &Value| {
            let state = if of["name"] == *component { &own } else { &running };
            json!({
                "name": of["name"], "image": of["image"], "imageID": "", "restartCount": 0,
                "ready": state["terminated"].is_null(), "state": state,
            })
        };
        let statuses: Vec<_> = containers.iter().map(status).collect();
        let mut status = json!({ "phase": phase, "containerStatuses": statuses });
        if let Some(address) = address {
            status["podIP"] = json!(address);
            status["podIPs"] = json!([{ "ip": address }]);
        }
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(&name, &PatchParams::default(), &patch).await?;
        Ok(name)
    }
}

/// Gives each pod a new manifest: at once, or after as many touches as its behaviour has.
pub(super) async fn follow_manifests(maps: Api<ConfigMap>, shared: Arc<Shared>) {
    let mut changes = watcher(maps, watcher::Config::default()).default_backoff().applied_objects().boxed();
    loop {
        let Ok(Some(map)) = changes.try_next().await else { continue };
        let Some(text) = map.data.as_ref().and_then(|data| data.get("pipeline.yaml")) else { continue };
        let manifest: Value = serde_saphyr::from_str(text).unwrap();
        let metadata = &manifest["metadata"];
        let (Some(uid), Some(generation)) = (metadata["uid"].as_str(), metadata["generation"].as_i64()) else {
            continue;
        };
        let (namespace, pipeline) = (map.namespace().unwrap(), metadata["name"].as_str().unwrap().to_owned());
        let mut state = shared.lock();
        let State { behaviours, pods, .. } = &mut *state;
        let behaviour = behaviours.entry((namespace.clone(), pipeline.clone())).or_default();
        let new = Some((uid.to_owned(), generation));
        if behaviour.manifest == new {
            continue;
        }
        behaviour.manifest.clone_from(&new);
        for pod in pods.values_mut().filter(|pod| pod.namespace == namespace && pod.pipeline == pipeline) {
            pod.touched.clear();
            if behaviour.touches == 0 {
                pod.manifest.clone_from(&new);
            }
        }
    }
}

/// Counts the touches of pods.
pub(super) async fn follow_touches(pods: Api<PartialObjectMeta<Pod>>, shared: Arc<Shared>) {
    let mut changes = watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
    loop {
        let Ok(Some(pod)) = changes.try_next().await else { continue };
        let Some(touch) = pod.annotations().get(TOUCHED) else { continue };
        let mut state = shared.lock();
        let State { behaviours, pods, .. } = &mut *state;
        let (namespace, name) = (pod.namespace().unwrap(), pod.name_any());
        let found = pods.values_mut().find(|pod| pod.namespace == namespace && pod.name == name);
        let Some(pod) = found.filter(|pod| pod.touch != *touch) else { continue };
        touch.clone_into(&mut pod.touch);
        pod.touched.push(Instant::now());
        let behaviour = &behaviours[&(namespace, pod.pipeline.clone())];
        if pod.touched.len() >= behaviour.touches {
            pod.manifest.clone_from(&behaviour.manifest);
        }
    }
}
