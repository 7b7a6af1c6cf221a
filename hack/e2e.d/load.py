"""Records, what should become of them, and what did."""

import json
import os
import random
import subprocess
import threading
import time
from collections import Counter, defaultdict
from decimal import Decimal

from kube import NAMESPACE, Failed, kubectl, run, until

KEY = None  # The API key; read from its Secret.
TLS = os.environ.get("MILLRACE_E2E_TLS") == "1"  # Whether the development servers offer TLS.
# The one that the chart makes for the development servers.
AUTHORITY = {"caSecretRef": {"name": "millrace-dev-tls", "key": "ca.crt"}}


def records(prefix, count, seed, duplicates=0.1):
    """Lines of NDJSON: distinct ids, some of them repeated later. Values are up to 2,000 with two decimals."""
    rng = random.Random(seed)
    distinct, lines = [], []
    for n in range(count):
        if distinct and rng.random() < duplicates:
            lines.append(distinct[rng.randrange(max(0, len(distinct) - 300), len(distinct))])
            continue
        record = {
            "recordId": f"{prefix}-{n}",
            "time": f"2026-01-31T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}Z",
            "sourceId": f"source-{n % 7}",
            "destinationId": f"{prefix}-d{rng.randrange(40)}",
            "type": rng.choice(["positive", "positive", "negative"]),
            "value": f"{rng.randrange(200_000) / 100:.2f}",
            "unit": "EUR",
            "reference": f"ref-{n % 3}",
        }
        distinct.append(json.dumps(record))
        lines.append(distinct[-1])
    return distinct, lines


def totals(distinct):
    """Count and total of each destination, computed from the records alone."""
    found = defaultdict(lambda: [0, Decimal(0)])
    for line in distinct:
        record = json.loads(line)
        value = Decimal(record["value"])
        found[record["destinationId"]][0] += 1
        found[record["destinationId"]][1] += value if record["type"] == "positive" else -value
    return {destination: (count, total) for destination, (count, total) in found.items()}


class Sender:
    """`millrace send` in a pod of its own, through the Service; it reads the records from its standard input, all at once
    or, with a rate (records a second), until it is stopped."""

    def __init__(self, name, lines, rate=None, pipeline="records"):
        self.name, self.pod, self.written = name, f"sender-{name}", 0
        arguments = ["send", "--concurrency", "1", "--url", f"http://{pipeline}-serve:8080"]
        arguments += ["--batch-size", "10"] if rate else []
        # As an argument the key would be in the object and in the process's title.
        key = {"name": "MILLRACE_API_KEY", "valueFrom": {"secretKeyRef": {"name": "millrace-dev-key", "key": "key"}}}
        overrides = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0}
        overrides["containers"] = [{"name": self.pod, "env": [key]}]
        self.process = subprocess.Popen(
            ["kubectl", "-n", NAMESPACE, "run", self.pod, "--image=localhost/millrace/service:dev", "--restart=Never"]
            + ["--image-pull-policy=Never", "--stdin", "--quiet", "--pod-running-timeout=2m"]
            + ["--override-type=strategic", "--overrides", json.dumps({"spec": overrides}), "--", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.stopped = threading.Event()
        self.feeder = threading.Thread(target=self.feed, args=(lines, rate), daemon=True)
        self.feeder.start()

    def feed(self, lines, rate):
        begun = time.monotonic()
        for line in lines:
            while rate and self.written > (time.monotonic() - begun) * rate and not self.stopped.is_set():
                time.sleep(0.05)
            if self.stopped.is_set():
                break
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            self.written += 1
        self.process.stdin.close()

    def stop(self):
        """Sends no more; gives how many lines were sent."""
        self.stopped.set()
        self.feeder.join()
        return self.written

    def end(self, seconds=300):
        """Waits for its end; gives its summary."""
        self.feeder.join(timeout=seconds)
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the sender {self.name} does not end") from error
        code = until(
            "the sender's exit code",
            lambda: kubectl("get", "pod", self.pod, "-o", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"),
            60,
        )
        summary = kubectl("logs", self.pod, "--tail=40")
        if code.strip() != "0":
            raise Failed(f"the sender {self.name} ended with {code}:\n{summary}")
        kubectl("delete", "pod", self.pod, "--wait=false")
        return summary


def api(path, method="GET", body=None, key=None, pipeline="records"):
    """A request from a pod through the Service; gives status and JSON (numbers as they were written)."""
    command = ["exec", "toolbox", "--", "curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", "-X", method]
    command += ["-H", f"Authorization: Bearer {key or KEY}"]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "--data", json.dumps(body)]
    out = kubectl(*command, f"http://{pipeline}-serve:8080{path}")
    text, _, status = out.rpartition("\n")
    return int(status), json.loads(text, parse_float=Decimal) if text.strip() else None


def redis(*arguments):
    """redis-cli against the development Redis."""
    tls = ("--tls", "--cacert", "/tls/ca.crt") if TLS else ()
    return run("kubectl", "-n", NAMESPACE, "exec", "millrace-dev-redis-0", "--", "redis-cli", *tls, *arguments)


def entries(stream):
    """All entries of a sink's stream: id and data."""
    found, start = [], "-"
    while True:
        page = json.loads(redis("--json", "XRANGE", stream, start, "+", "COUNT", "5000"))
        for _, fields in page:
            fields = dict(zip(fields[::2], fields[1::2])) if isinstance(fields, list) else fields
            found.append((fields["id"], json.loads(fields["data"], parse_float=Decimal)))
        if len(page) < 5000:
            return found
        start = f"({page[-1][0]}"


def stats():
    status, found = api("/stats")
    if status != 200:
        raise Failed(f"/stats answered {status}: {found}")
    return found


def applied():
    """Whether nothing is queued and every sink has published all."""
    found = stats()
    lags = [sink.get("lag", 0) for sink in found.get("sinks", [])]
    return found if found["backlog"] == 0 and all(lag == 0 for lag in lags) else None


def compare(distinct, prefix):
    """Each of the records is there exactly once, in Postgres and in the notifications, in order; gives what was seen."""
    want = {json.loads(line)["recordId"] for line in distinct}
    notified = [(id, data) for id, data in entries("records.notifications") if data["record"]["recordId"].startswith(prefix)]
    seen = Counter(data["record"]["recordId"] for _, data in notified)
    lost, doubled = want - set(seen), [id for id, count in seen.items() if count > 1]
    if lost or doubled or len(seen) != len(want):
        raise Failed(f"lost {len(lost)} ({sorted(lost)[:5]}), doubled {len(doubled)} ({doubled[:5]}), {len(seen)} of {len(want)}")
    highest = {}
    for id, data in notified:
        shard, seq = (int(part) for part in id.split("-"))
        if seq <= highest.get(shard, 0):
            raise Failed(f"shard {shard}: {seq} came after {highest[shard]}")
        highest[shard] = seq
    arrived = defaultdict(list)
    for _, data in notified:
        arrived[data["record"]["destinationId"]].append(int(data["record"]["recordId"].rsplit("-", 1)[1]))
    for destination, numbers in arrived.items():
        if numbers != sorted(numbers):
            raise Failed(f"{destination} was not processed in the order of arrival")
    status, answer = api("/records/aggregations?records=false")
    if status != 200:
        raise Failed(f"/records/aggregations answered {status}")
    found = {}
    for group in answer["groups"]:
        if group["destinationId"].startswith(prefix):
            total = next(total for total in group["totals"] if total["unit"] == "EUR")
            found[group["destinationId"]] = (int(total["count"]), Decimal(total["total"]))
    expected = totals(distinct)
    if found != expected:
        wrong = {d: (found.get(d), expected.get(d)) for d in expected if found.get(d) != expected[d]}
        raise Failed(f"totals differ (found, expected): {dict(list(wrong.items())[:3])}")
    return f"{len(want)} records, lost 0, doubled 0, order kept, {len(expected)} totals equal"
