//! The operator as a process, on a real etcd and kube-apiserver. `cluster/` acts as the missing controllers and
//! kubelets. Each test has a namespace, operators and a release of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod admission;
mod cluster;
mod deletion;
mod leader;
mod ledger;
mod live;
mod migration;
mod outage;
mod rbac;
mod ready;
mod repair;
mod rollout;
mod scaling;
mod server;
mod stalled;
mod world;
