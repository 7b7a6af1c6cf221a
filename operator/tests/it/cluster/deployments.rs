//! Acts as the controller of Deployments, without ReplicaSets.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt as _, api::DeleteParams, runtime::controller::Action};
use serde_json::{Value, json};

use super::{COMPONENT, FakePod, INSTANCE, Shared, now, refusal};

/// Creates and deletes a Deployment's pods, and reports their number.
pub(super) async fn reconcile(deployment: Arc<Deployment>, shared: Arc<Shared>) -> Result<Action, kube::Error> {
    let pass = DeploymentPass::new(&deployment, &shared);
    let (old, new) = pass.pods();
    for _ in new.len()..if pass.broken { 0 } else { pass.wanted } {
        if let Err(error) = pass.create_pod().await {
            let Some(message) = refusal(&error) else { return Err(error) };
            pass.report_refusal(&message).await?;
            return Ok(Action::requeue(Duration::from_millis(300)));
        }
    }
    let outdated = if pass.broken { &[][..] } else { &old[..] };
    pass.delete_pods(outdated.iter().chain(new.iter().skip(pass.wanted))).await;
    let (old, updated) = if pass.broken { (old.len(), 0) } else { (0, pass.wanted) };
    pass.report_pods(old, updated).await?;
    // A test may change the behaviour, and no watch reports that.
    Ok(if pass.broken { Action::requeue(Duration::from_millis(500)) } else { Action::await_change() })
}

/// Pods with their addresses.
type Pods = Vec<(Ipv4Addr, FakePod)>;

/// One pass over a Deployment.
struct DeploymentPass<'a> {
    deployment: &'a Deployment,
    shared: &'a Shared,
    namespace: String,
    pipeline: String,
    component: String,
    /// The template of its pods, and its hash.
    template: Value,
    hash: u64,
    /// Whether new pods never become available.
    broken: bool,
    /// The wanted number of pods.
    wanted: usize,
}

impl<'a> DeploymentPass<'a> {
    fn new(deployment: &'a Deployment, shared: &'a Shared) -> Self {
        let namespace = deployment.namespace().unwrap();
        let spec = deployment.spec.as_ref().unwrap();
        let template = serde_json::to_value(&spec.template).unwrap();
        let label = |name: &str| template["metadata"]["labels"][name].as_str().unwrap_or("").to_owned();
        let (pipeline, component) = (label(INSTANCE), label(COMPONENT));
        let containers = template["spec"]["containers"].as_array().unwrap();
        let main = containers.iter().find(|container| container["name"] == *component);
        let image = main.map_or("", |main| main["image"].as_str().unwrap()).to_owned();
        let broken = shared.behaviour(&namespace, &pipeline).broken_image.as_ref() == Some(&image);
        let mut hasher = DefaultHasher::new();
        template.to_string().hash(&mut hasher);
        let hash = hasher.finish();
        let is_deleted = deployment.metadata.deletion_timestamp.is_some();
        let wanted = if is_deleted { 0 } else { spec.replicas.unwrap_or(1) as usize };
        Self { deployment, shared, namespace, pipeline, component, template, hash, broken, wanted }
    }

    /// The pods of old templates, and those of the current one, by address.
    fn pods(&self) -> (Pods, Pods) {
        let state = self.shared.lock();
        let own = state.pods.iter().filter(|(_, pod)| {
            pod.namespace == self.namespace && pod.pipeline == self.pipeline && pod.component == self.component
        });
        own.map(|(address, pod)| (*address, pod.clone())).partition(|(_, pod)| pod.template != self.hash)
    }

    async fn create_pod(&self) -> Result<(), kube::Error> {
        let address = {
            let mut state = self.shared.lock();
            state.last_address += 1;
            Ipv4Addr::from(Ipv4Addr::new(127, 1, 0, 0).to_bits() + state.last_address)
        };
        let mut object = self.template.clone();
        object["metadata"]["generateName"] = json!(format!("{}-", self.deployment.name_any()));
        object["metadata"]["labels"]["pod-template-hash"] = json!(format!("{:x}", self.hash));
        let running = json!({ "running": { "startedAt": now() } });
        // It answers before anyone can read its address.
        let mut pod = FakePod {
            namespace: self.namespace.clone(),
            pipeline: self.pipeline.clone(),
            name: address.to_string(),
            component: self.component.clone(),
            template: self.hash,
            manifest: self.shared.behaviour(&self.namespace, &self.pipeline).manifest,
            touch: String::new(),
            touched: Vec::new(),
        };
        self.shared.lock().pods.insert(address, pod.clone());
        match self.shared.create_pod(&self.namespace, &object, running, Some(address)).await {
            Ok(name) => {
                pod.name = name;
                let mut state = self.shared.lock();
                pod.manifest = state.behaviours[&(self.namespace.clone(), self.pipeline.clone())].manifest.clone();
                state.pods.insert(address, pod);
                Ok(())
            }
            Err(error) => {
                self.shared.lock().pods.remove(&address);
                Err(error)
            }
        }
    }

    async fn delete_pods(&self, pods: impl Iterator<Item = &(Ipv4Addr, FakePod)>) {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &self.namespace);
        for (address, pod) in pods {
            let _ = api.delete(&pod.name, &DeleteParams::default().grace_period(0)).await;
            self.shared.lock().pods.remove(address);
        }
    }

    /// Reports a refused pod, as the controller of ReplicaSets reports it to the Deployment.
    async fn report_refusal(&self, message: &str) -> Result<(), kube::Error> {
        let failure = json!([{
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message,
            "lastTransitionTime": now(), "lastUpdateTime": now(),
        }]);
        let status = json!({ "observedGeneration": self.deployment.metadata.generation, "conditions": failure });
        let reported = self.deployment.status.as_ref().and_then(|status| status.conditions.as_ref());
        if reported.is_none() { self.write_status(status).await } else { Ok(()) }
    }

    /// Reports the number of pods, where it differs from the reported one.
    async fn report_pods(&self, old: usize, updated: usize) -> Result<(), kube::Error> {
        let all = old + updated;
        let mut status = json!({
            "observedGeneration": self.deployment.metadata.generation, "replicas": all, "updatedReplicas": updated,
            "readyReplicas": all, "availableReplicas": all,
        });
        let before = serde_json::to_value(&self.deployment.status).unwrap();
        // The API server leaves zero out.
        let is_reported = |field: &str| before[field].as_i64().unwrap_or(0) == status[field].as_i64().unwrap_or(0);
        let refused = !before["conditions"].is_null();
        if !refused && status.as_object().unwrap().keys().all(|field| is_reported(field)) {
            return Ok(());
        }
        if refused {
            status["conditions"] = Value::Null;
        }
        self.write_status(status).await
    }

    async fn write_status(&self, status: Value) -> Result<(), kube::Error> {
        let deployments: Api<Deployment> = Api::namespaced(self.shared.client.clone(), &self.namespace);
        self.shared.write_status(&deployments, self.deployment, status).await
    }
}
