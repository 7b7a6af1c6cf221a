"""Operations on a pipeline on a cluster, under load, each with its result. Run by hack/e2e."""

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import time

import load
import planted
from kube import NAMESPACE, Failed, condition, fail, get, kubectl, patch, pods, ready, restarts, run, step, until
from load import AUTHORITY, Sender, api, applied, compare, entries, records, redis, stats

RATE = int(os.environ.get("MILLRACE_E2E_RATE", "60"))
LONGEST = 1800  # Seconds; the load ends when all steps were done.
EXAMPLE = "examples/records/pipeline.yaml"
HELM3, HELM4 = os.environ["HELM3"], os.environ["HELM4"]
SERVICE, NEXT = "localhost/millrace/service:dev", "localhost/millrace/service:next"


def chart(operator, image):
    return [
        "--namespace", NAMESPACE, "--wait", "--timeout", "5m",
        "--set", f"image.repository=localhost/millrace/operator,image.tag={operator},defaultImage={image}",
        "--set", "dev.enabled=true,dev.redis.image.repository=localhost/redis",
        "--set", "dev.postgres.image.repository=localhost/postgres",
        "--set-string", "dev.postgres.image.tag=15",
        "--set", f"dev.tls.enabled={str(load.TLS).lower()}",
        "--set", "extraEnv[0].name=MILLRACE_SCALE_DOWN_SECONDS", "--set-string", "extraEnv[0].value=15",
    ]  # fmt: skip


@step("installed by Helm 3")
def install():
    run(HELM3, "install", "millrace", "charts/millrace", "--create-namespace", *chart("dev", SERVICE))
    run(HELM3, "test", "millrace", "--namespace", NAMESPACE)
    found = get("secret", "millrace-dev-key")
    load.KEY = base64.b64decode(found["data"]["key"]).decode()
    return "operator, Redis and Postgres run; helm test passed"


def reference(name, key):
    """A server by the Secret of its URL, with the authority of the development servers where they have TLS."""
    return {"urlSecretRef": {"name": name, "key": key}, **({"tls": AUTHORITY} if load.TLS else {})}


def apply_example():
    """Applies the example's pipeline, which trusts the authority of the development servers where they have TLS."""
    example = json.loads(kubectl("create", "--dry-run=client", "--output=json", "-f", EXAMPLE))
    if load.TLS:
        example["spec"]["redis"]["tls"] = example["spec"]["postgres"]["tls"] = AUTHORITY
    kubectl("apply", "-f", "-", text=json.dumps(example))


@step("kubectl apply, until Ready")
def apply():
    apply_example()
    kubectl("wait", "--for=condition=Ready", "rpl/records", "--timeout=180s")
    spec = {"containers": [{"name": "toolbox", "image": "localhost/toolbox:1", "imagePullPolicy": "Never"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "toolbox"}}
    spec["containers"][0]["command"] = ["sleep", "infinity"]
    kubectl("apply", "-f", "-", text=json.dumps({**pod, "spec": {**spec, "terminationGracePeriodSeconds": 0}}))
    kubectl("wait", "--for=condition=Ready", "pod/toolbox", "--timeout=60s")
    return kubectl("get", "rpl", "records", "--no-headers").strip()


@step("records sent from a pod through the Service")
def first_records():
    distinct, lines = records("first", 3000, seed=1)
    Sender("first", lines).end()
    until("everything to be applied", applied)
    above = sum(float(json.loads(line)["value"]) > 1000 for line in distinct)
    alerts = [d for _, d in entries("records.alerts") if d["record"]["recordId"].startswith("first-")]
    if len(alerts) != above:
        raise Failed(f"{len(alerts)} alerts, {above} records are above 1000")
    return f"{compare(distinct, 'first-')}; {above} alerts"


def steady():
    """The load during all further steps."""
    _, lines = records("steady", RATE * LONGEST, seed=2)
    sender = Sender("steady", lines, rate=RATE)
    until("the load to begin", lambda: stats()["processed"] > 3100)
    return lines, sender


@step("a threshold changed")
def threshold(value):
    before = {**pods("work"), **pods("serve")}
    previous, generation = restarts(before), get("rpl", "records")["metadata"]["generation"]
    begun = time.monotonic()
    patch("records", {"spec": {"threshold": value}})
    until("the new threshold to be active", lambda: ready("records") and generation < get("rpl", "records")["metadata"]["generation"], 60, 0.2)
    took = time.monotonic() - begun
    if restarts({**pods("work"), **pods("serve")}) != previous:
        raise Failed("pods were restarted or replaced")
    return f"{value} active on every shard after {took:.1f} s, no pod restarted"


@step("per shard, alerts change at one record")
def turning_points(low, high):
    """No alert for values between the two thresholds up to a record, and one for each from it on."""
    notified = [
        (id, float(data["record"]["value"]))
        for id, data in entries("records.notifications")
        if data["record"]["recordId"].startswith("steady-") and low < float(data["record"]["value"]) <= high
    ]

    def turned():
        # Read after the notifications: an alert that is missing now comes later or never.
        alerted = {id.removesuffix("-alert") for id, _ in entries("records.alerts")}
        first = {}
        for id, value in notified:
            shard = id.split("-")[0]
            if id in alerted:
                first.setdefault(shard, id)
            elif shard in first:
                raise Failed(f"{id} ({value}) raised no alert after {first[shard]} did")
        return first

    shards = until("the alerts of the notified records", turned, 20)
    return f"{len(shards)} shards turned, {len(notified)} records between the thresholds"


@step("a sink added")
def add_sink():
    spec = get("rpl", "records")["spec"]
    copy = {"name": "copy", "event": "Processed", "from": {"position": "Beginning"}, "redisStream": {"stream": "records.copy", "overflow": "Trim"}}
    patch("records", {"spec": {"sinks": [*spec["sinks"], copy]}})
    until("its first entries", lambda: int(redis("XLEN", "records.copy")) > 3000, 60)
    return f"{redis('XLEN', 'records.copy').strip()} entries from the beginning on"


@step("the sink removed")
def remove_sink():
    spec = get("rpl", "records")["spec"]
    patch("records", {"spec": {"sinks": [sink for sink in spec["sinks"] if sink["name"] != "copy"]}})
    until("its cursor to go", lambda: not re.search("copy", redis("--scan", "--pattern", "*records.copy*cursor*")), 60)
    until("Ready", lambda: ready("records"), 60)
    redis("DEL", "records.copy")
    return "its cursor is deleted"


@step("a Secret that comes late")
def late_secret():
    late = {"apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline", "metadata": {"name": "late"}}
    late["spec"] = {
        "shards": 2,
        "redis": reference("late-redis", "url"),
        "postgres": reference("millrace-dev-postgres", "url"),
        "auth": {"bootstrapKeySecretRef": {"name": "late-key", "key": "key"}},
    }
    kubectl("apply", "-f", "-", text=json.dumps(late))
    seen = until(
        "SecretNotFound",
        lambda: next((c for c in [condition("late", "Degraded")] if c.get("reason") == "SecretNotFound"), None),
        90,
    )
    url = base64.b64decode(get("secret", "millrace-dev-redis")["data"]["url"]).decode()
    kubectl("create", "secret", "generic", "late-redis", f"--from-literal=url={url}")
    kubectl("create", "secret", "generic", "late-key", f"--from-literal=key=mk_{secrets.token_urlsafe(32)}")
    kubectl("wait", "--for=condition=Ready", "rpl/late", "--timeout=150s")
    return f"first {seen['reason']}: {seen['message']}; Ready once it was there"


@step("a Secret that changes")
def changed_secret():
    before, key = pods("serve", "late"), f"mk_{secrets.token_urlsafe(32)}"
    kubectl("patch", "secret", "late-key", "-p", json.dumps({"stringData": {"key": key}}))
    until("the new key to be taken", lambda: api("/stats", key=key, pipeline="late")[0] == 200, 180, 1)
    if restarts(before) != restarts(pods("serve", "late")):
        raise Failed("pods were restarted or replaced")
    kubectl("delete", "rpl", "late", "--timeout=120s")
    return "taken by the running pods, none restarted"


@step("workers 1 → 4 → 2")
def scale():
    for workers in (4, 2):
        kubectl("scale", "rpl/records", f"--replicas={workers}")
        until(f"{workers} workers", lambda: ready("records") and len(pods("work")) == workers, 120)
        owners = {shard.get("worker") for shard in stats()["shards"]}
        if len(owners) != workers:
            until("the shards to be shared", lambda: len({s.get("worker") for s in stats()["shards"]}) == workers, 60)
    return "each time the shards were shared out"


@step("an eviction, and a second one")
def evict():
    first, second = sorted(pods("work"))[:2]
    body = lambda name: json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}})
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/%s/eviction"
    kubectl("create", "--raw", path % first, "-f", "-", text=body(first))
    refused = kubectl("create", "--raw", path % second, "-f", "-", text=body(second), check=False)
    if refused.returncode == 0 or "disruption budget" not in refused.stderr:
        raise Failed(f"the second eviction was not refused by the budget: {refused.stderr}")
    until("two workers again", lambda: len(pods("work")) == 2 and ready("records"), 120)
    return f"the second was refused: {refused.stderr.strip()[-120:]}"


def status_backlog():
    """The backlog that a serve pod returns to the operator."""
    address = next(iter(pods("serve").values()))["status"]["podIP"]
    answer = json.loads(kubectl("exec", "toolbox", "--", "curl", "-sS", "--max-time", "5", f"http://{address}:8081/status"))
    return (answer["counts"] or {"backlog": 0})["backlog"]


@step("autoscaling up and down")
def autoscale():
    refused = None
    patch("records", {"spec": {"replicas": 0}})
    until("no workers", lambda: not pods("work"), 90)
    _, lines = records("burst", 4000, seed=3, duplicates=0)
    Sender("burst", lines).end()
    # The operator decides by the last answer of a pod's /status. An answer from before the burst asks for one worker, and
    # that worker applies the whole burst before the operator asks again. Two answers, half a second apart: the operator
    # asks a pod at most every 400 ms.
    waiting = lambda: status_backlog() > 3200
    until("/status to count the burst", waiting)
    until("/status to count the burst again", lambda: time.sleep(0.5) or waiting())
    scaling = {"minReplicas": 1, "maxReplicas": 4, "targetBacklog": 800}
    patch("records", {"spec": {"replicas": None, "autoscaling": scaling}})
    until("four workers to be wanted", lambda: get("deploy", "records-work")["spec"]["replicas"] == 4, 60, 0.2)
    refused = kubectl("scale", "rpl/records", "--replicas=3", check=False)
    if refused.returncode == 0 or "autoscaling" not in refused.stderr:
        raise Failed(f"kubectl scale was not refused: {refused.stderr}")
    until("one worker again", lambda: get("deploy", "records-work")["spec"]["replicas"] == 1, 120)
    patch("records", {"spec": {"replicas": 2, "autoscaling": None}})
    until("two workers", lambda: ready("records") and len(pods("work")) == 2, 90)
    return "0 → 4 by the backlog → 1 when it was gone; kubectl scale refused with the remedy meanwhile"


@step("a worker killed with no grace")
def kill_worker():
    name = sorted(pods("work"))[0]
    kubectl("delete", "pod", name, "--grace-period=0", "--force")
    owners = lambda: {shard.get("worker") or "" for shard in stats()["shards"]}
    alive = lambda owner: any(pod in owner for pod in pods("work"))
    until("its shards to have other owners", lambda: all(alive(owner) for owner in owners()), 60)
    until("two workers, and Ready", lambda: len(pods("work")) == 2 and len(owners()) == 2 and ready("records"), 120)
    return f"{name}: live workers own its shards"


@step("serve and work rolled by an image change")
def roll(image):
    before = {**pods("serve"), **pods("work")}
    patch("records", {"spec": {"image": image}})
    now = lambda: {**pods("serve"), **pods("work")}
    images = lambda: {p["spec"]["containers"][0]["image"] for p in now().values()}
    until(f"all pods to be of {image}", lambda: images() == {image} and ready("records"), 180)
    if set(before) & set(now()):
        raise Failed("pods stayed")
    return f"all pods are of {image or 'the default image'}"


@step("a server restarted")
def restart(pod):
    uid = get("pod", pod)["metadata"]["uid"]
    kubectl("delete", "pod", pod)
    back = lambda: (get("pod", pod) or {}).get("metadata", {}).get("uid") not in (None, uid)
    until("the server", back, 120)
    kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=120s")
    processed = until("its answers", lambda: stats(), 120)["processed"]
    until("records to be processed again", lambda: stats()["processed"] > processed, 120)
    until("Ready", lambda: ready("records"), 120)
    return f"{pod}: records flow again"


@step("the operator killed")
def kill_operator():
    kubectl("delete", "pod", "-l", "app.kubernetes.io/name=millrace-operator", "--grace-period=0", "--force")
    return "its successor takes the Lease"


@step("the chart upgraded by Helm 4: the operator's image")
def upgrade_operator():
    before, templates = {**pods("serve"), **pods("work")}, [get("deploy", f"records-{role}")["spec"]["template"] for role in ("serve", "work")]
    run(HELM4, "upgrade", "millrace", "charts/millrace", *chart("next", SERVICE))
    patch("records", {"metadata": {"annotations": {"example.org/seen": "yes"}}})
    until("Ready", lambda: ready("records"), 120)
    if [get("deploy", f"records-{role}")["spec"]["template"] for role in ("serve", "work")] != templates:
        raise Failed("a pod template changed")
    if set(before) != set({**pods("serve"), **pods("work")}):
        raise Failed("pods were replaced")
    return "no pod template changed, no pod restarted"


@step("the chart upgraded by Helm 4: the default image")
def upgrade_default():
    run(HELM4, "upgrade", "millrace", "charts/millrace", *chart("next", NEXT))
    images = lambda: {p["spec"]["containers"][0]["image"] for p in {**pods("serve"), **pods("work")}.values()}
    until("the pods to follow", lambda: images() == {NEXT} and ready("records"), 240)
    return f"the pods follow: {NEXT}"


def upgrade_charted(changes, check=True):
    """Installs or upgrades a pipeline by its chart and waits as Helm 4 does; gives Helm's end and the seconds until it."""
    spec = {
        "shards": 2,
        "redis": reference("millrace-dev-redis", "url"),
        "postgres": reference("millrace-dev-postgres", "url"),
        "auth": {"bootstrapKeySecretRef": {"name": "millrace-dev-key", "key": "key"}},
    }
    values = json.dumps({"spec": {**spec, **changes}})
    begun = time.monotonic()
    command = [HELM4, "upgrade", "--install", "charted", "charts/millrace-pipeline", "--namespace", NAMESPACE, "--values", "-"]
    done = run(*command, "--wait", "--timeout", "4m", text=values, check=check)
    return done, time.monotonic() - begun


@step("a pipeline by its chart: --wait of Helm 4 follows its status")
def follow():
    """Helm ends when the pipeline is Ready of its newest generation, and at once when only a change by hand helps."""
    took = []
    for generation, threshold in ((1, "5"), (2, "7")):
        took.append(upgrade_charted({"threshold": threshold})[1])
        found = get("rpl", "charted")["metadata"]["generation"]
        if found != generation or not ready("charted"):
            raise Failed(f"helm ended at generation {found}: {condition('charted', 'Ready')}")
    failed, seconds = upgrade_charted({"redis": reference("missing", "url")}, check=False)
    if failed.returncode == 0 or "status: Failed" not in failed.stderr or seconds > 200:
        raise Failed(f"with a missing Secret: exit {failed.returncode} after {seconds:.0f} s: {failed.stderr}")
    # The pods before the repair report the missing Secret until they are replaced; Helm waits for those of the repair.
    repaired = upgrade_charted({})[1]
    if not ready("charted"):
        raise Failed(f"helm ended before the repaired pipeline was Ready: {condition('charted', 'Ready')}")
    run(HELM4, "uninstall", "charted", "--namespace", NAMESPACE, "--wait", "--timeout", "120s")
    if get("rpl", "charted"):
        raise Failed("helm ended, and the pipeline is still there")
    return f"Ready when helm ended, after {took[0]:.0f} s and {took[1]:.0f} s; failed after {seconds:.0f} s, repaired after {repaired:.0f} s: {failed.stderr.strip()[-160:]}"


@step("an uninstall, refused")
def refuse_uninstall():
    refused = run(HELM4, "uninstall", "millrace", "--namespace", NAMESPACE, "--timeout", "60s", check=False)
    if refused.returncode == 0:
        raise Failed("helm uninstall went through")
    if not get("deploy", "millrace"):
        raise Failed("the operator is gone")
    return "records exists, and the operator stays"


@step("the load ended")
def counted(lines, sender):
    distinct = list(dict.fromkeys(lines[: sender.stop()]))
    summary = sender.end()
    until("everything to be applied", applied, 180)
    found = stats()
    if found["lost"] or found["deadLetters"]["open"] or found["conflicts"]:
        raise Failed(f"lost, dead letters or conflicts: {found}")
    return f"{compare(distinct, 'steady-')}; sender: {' '.join(summary.split())[-160:]}"


@step("verify and sinks, in a worker's pod")
def by_hand():
    sinks = kubectl("exec", "deploy/records-work", "--", "millrace", "sinks", "list")
    out = kubectl("exec", "deploy/records-work", "--", "millrace", "verify")
    return f"{out.strip().splitlines()[-1]}; {len(sinks.strip().splitlines())} lines of sinks"


@step("deleted with drain, and applied again")
def drain():
    processed = stats()["processed"]
    _, lines = records("last", 2000, seed=4, duplicates=0)
    Sender("last", lines).end()
    kubectl("delete", "rpl", "records", "--timeout=180s")
    until("its pods to go", lambda: not get("pods", selector="app.kubernetes.io/instance=records,app.kubernetes.io/component=work"), 90)
    apply_example()
    kubectl("wait", "--for=condition=Ready", "rpl/records", "--timeout=180s")
    found = until("the pipeline's answer", stats, 60)
    if (found["processed"], found["backlog"]) != (processed + 2000, 0):
        raise Failed(f"{processed} + 2000 before, now {found['processed']}, backlog {found['backlog']}")
    distinct, lines = records("again", 500, seed=5)
    Sender("again", lines).end()
    until("everything to be applied", applied)
    return f"drained and resumed: {compare(distinct, 'again-')}"


@step("deleted, and the release uninstalled")
def uninstall():
    kubectl("delete", "rpl", "records", "--timeout=180s")
    run(HELM4, "uninstall", "millrace", "--namespace", NAMESPACE, "--timeout", "120s")
    return "nothing is left of it"


def main():
    install()
    apply()
    first_records()
    planted.refuse()
    lines, sender = steady()
    threshold("300.00")
    turning_points(300, 1000)
    add_sink()
    remove_sink()
    late_secret()
    changed_secret()
    scale()
    evict()
    autoscale()
    kill_worker()
    roll(NEXT)
    roll(SERVICE)
    patch("records", {"spec": {"image": None}})
    restart("millrace-dev-redis-0")
    restart("millrace-dev-postgres-0")
    kill_operator()
    threshold("500.00")
    upgrade_operator()
    upgrade_default()
    follow()
    refuse_uninstall()
    counted(lines, sender)
    by_hand()
    planted.search()
    drain()
    by_hand()
    uninstall()


try:
    main()
except (Failed, subprocess.TimeoutExpired) as error:
    fail(error)
    sys.exit(1)
