//! The operator as it runs, on a real etcd and kube-apiserver. Where controllers and kubelets are missing, the tests play
//! them: `player/`. Each test has a namespace, operators and a release of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admission;
mod deletion;
mod leader;
mod ledger;
mod live;
mod migration;
mod outage;
mod player;
mod rbac;
mod ready;
mod repair;
mod rollout;
mod scaling;
mod server;
mod world;
