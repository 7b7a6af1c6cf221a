"""What hack/alerts-live does: a pipeline of processes, load, a Prometheus with the rules of the chart, faults, panels."""

import contextlib
import http.server
import itertools
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "hack"))
import traces
from free_port import free_port

DASHBOARDS = sorted((ROOT / "charts/millrace/files/dashboards").glob("*.json"))
KEY = "mk_" + "alerts-live-" * 3
NAME = f"live-{os.getpid()}"
REDIS, POSTGRES = os.environ["MILLRACE_TEST_REDIS_URL"], os.environ["MILLRACE_TEST_POSTGRES_URL"]
BEGAN = time.time()
# By name: none ends before the run does.
PROCESSES = {}


def say(text):
    print(f"== {time.time() - BEGAN:5.1f} s  {text}", file=sys.stderr, flush=True)


def wait_for(what, condition, seconds=60):
    """Until the condition gives something true, which is returned."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        if ended := [name for name, process in PROCESSES.items() if process.poll() is not None]:
            sys.exit(f"!! {ended} ended while waiting for {what}")
        if time.monotonic() > until:
            sys.exit(f"!! waited {seconds} s for {what}")
        time.sleep(0.2)
    return found


class Cut:
    """A way to Postgres that can be cut."""

    def __init__(self):
        place = urllib.parse.urlsplit(POSTGRES)
        self.target, self.open, self.sockets = (place.hostname, place.port), True, set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            if not self.open:
                client.close()
                continue
            server = socket.create_connection(self.target)
            self.sockets |= {client, server}
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self.copy, args=pair, daemon=True).start()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            self.sockets.discard(one)

    def set(self, is_open):
        self.open = is_open
        for one in list(self.sockets) if not is_open else ():
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Receiver(http.server.BaseHTTPRequestHandler):
    """The endpoint of a webhook, which refuses every tenth delivery once."""

    counter = itertools.count(1)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(500 if next(self.counter) % 10 == 0 else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Live:
    def __init__(self, folder, stack):
        self.folder, self.stack, self.cut, self.name, self.free_port = folder, stack, Cut(), NAME, free_port
        self.number, self.ports = itertools.count(), {}
        (folder / "secrets/hook").mkdir(parents=True)
        (folder / "secrets/hook/signing").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        hooks = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=hooks.serve_forever, daemon=True).start()
        stream = lambda **of: {"redisStream": {"maxLength": 0, **of}}
        self.spec = {
            "shards": 2, "threshold": "500", "policy": {"minimumTotal": "0"},
            "sinks": [
                {"name": "events", "event": "Processed", **stream()},
                {"name": "alerts", "event": "Alert", **stream()},
                {"name": "short", "event": "Processed", **stream(maxLength=100, overflow="Trim")},
                {"name": "hook", "event": "Alert", "webhook": {
                    "url": f"http://127.0.0.1:{hooks.server_port}/", "secretRef": {"name": "hook", "key": "signing"},
                    "allowedCidrs": ["127.0.0.1/32"]}},
            ],
        }
        self.manifest = {"apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline", "metadata": {"name": NAME}, "spec": self.spec}
        (folder / "pipeline.yaml").write_text(json.dumps(self.manifest))
        database = f"live_{os.getpid()}"
        self.psql(POSTGRES, f"create database {database}")
        self.direct = POSTGRES.rsplit("/", 1)[0] + f"/{database}"
        place = urllib.parse.urlsplit(self.direct)
        through = self.direct.replace(f":{place.port}/", f":{self.cut.port}/")
        self.env = os.environ | {
            "MILLRACE_PIPELINE": str(folder / "pipeline.yaml"), "MILLRACE_REDIS_URL": REDIS, "MILLRACE_POSTGRES_URL": through,
            "MILLRACE_BOOTSTRAP_KEY": KEY, "MILLRACE_WEBHOOK_SECRETS_DIR": str(folder / "secrets"), "MILLRACE_LOG_FORMAT": "json",
        }

    def psql(self, url, statement):
        subprocess.run(["psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", url, "--command", statement], check=True)

    def redis(self, *words):
        return subprocess.run(["redis-cli", "-u", REDIS, *words], check=True, capture_output=True, text=True).stdout.strip()

    def millrace(self, *arguments, **more):
        env = self.env | {"MILLRACE_POSTGRES_URL": self.direct}
        return subprocess.run([os.environ["MILLRACE"], *arguments], env=env, capture_output=True, text=True, **more)

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("w")
        PROCESSES[name] = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.stack.callback(PROCESSES[name].wait)
        self.stack.callback(PROCESSES[name].kill)

    def pipeline(self):
        self.millrace("migrate", check=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        for role in ("serve", "work"):
            self.ports[role] = free_port()
            listen = ["--listen", self.url[7:]] if role == "serve" else []
            self.start(role, os.environ["MILLRACE"], role, "--health-listen", f"127.0.0.1:{self.ports[role]}", *listen)
        made = self.millrace("keys", "create", "--name", "limited", "--scope", "ingest", "--records-per-second", "1", check=True)
        self.limited = re.search(r"mk_\w+", made.stdout)[0]
        wait_for("serve", lambda: self.request("GET", "/health") == 200)

    def operator(self):
        kubectl = lambda *words, **more: subprocess.run(["kubectl", *words], check=True, stdout=subprocess.DEVNULL, **more)
        kubectl("apply", "--server-side", "-f", ROOT / "crds/recordpipeline.crd.yaml")
        # `kubectl wait` fails where there is no condition yet.
        established = ["kubectl", "wait", "--for=condition=Established", "--timeout=1s", "crd/recordpipelines.millrace.dev"]
        wait_for("the definition", lambda: subprocess.run(established, capture_output=True).returncode == 0)
        secrets = {field: {"urlSecretRef": {"name": field, "key": "url"}} for field in ("redis", "postgres")}
        resource = self.manifest | {"spec": {"threshold": "500", **secrets}}
        kubectl("apply", "-n", "default", "-f", "-", input=json.dumps(resource).encode())
        self.ports["operator"] = free_port()
        self.start("operator", os.environ["MILLRACE"] + "-operator", "run", "--release", "live", "--namespace", "default",
                   "--default-image", "millrace:live", "--listen", f"127.0.0.1:{self.ports['operator']}")

    def prometheus(self):
        rules = subprocess.run(["hack/alerts-check", "--rules", "--set", "monitoring.prometheusRule.backlog=500"],
                               cwd=ROOT, check=True, capture_output=True, text=True).stdout
        (self.folder / "rules.yaml").write_text(re.sub(r"(?m)^( +for: \d+)m$", r"\1s", rules))
        target = lambda of, **labels: {"targets": [f"127.0.0.1:{self.ports[of]}"], "labels": labels}
        of = {"namespace": "live", "pipeline": NAME}
        jobs = {"pipelines": [target(role, role=role, **of) for role in ("serve", "work")],
                "operator": [target("operator", namespace="millrace-system", service="millrace")]}
        # A scrape waits up to 1.5 s for a server that does not answer.
        times = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        scraped = [{"job_name": name, "honor_labels": True, "static_configs": targets} for name, targets in jobs.items()]
        configuration = {"global": times, "rule_files": ["rules.yaml"], "scrape_configs": scraped}
        (self.folder / "prometheus.yaml").write_text(json.dumps(configuration))
        port = free_port()
        self.start("prometheus", "prometheus", f"--config.file={self.folder}/prometheus.yaml", f"--storage.tsdb.path={self.folder}/tsdb",
                   f"--web.listen-address=127.0.0.1:{port}")
        self.api = f"http://127.0.0.1:{port}/api/v1"
        wait_for("Prometheus", lambda: self.ask("query", query="vector(1)"))

    def ask(self, path, **parameters):
        """The result of a query of Prometheus; nothing while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.api}/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            # It answers so until it has read its files.
            if error.code == 503:
                return []
            sys.exit(f"!! {parameters}: {error.read().decode()}")
        except OSError:
            return []
        return data.get("result", data)

    def firing(self):
        return {alert["labels"]["alertname"]: alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def request(self, method, path, body=None, key=KEY, headers=None):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(self.url + path, body and json.dumps(body).encode(), headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def record(self, number=None, **of):
        number = next(self.number) if number is None else number
        return {"recordId": f"r{number}", "time": "2026-01-31T12:00:00Z", "sourceId": "s", "destinationId": f"d{number % 10}",
                "type": "positive", "value": str(number % 600), "unit": "EUR", "reference": "x"} | of

    def batch(self):
        """Records of every outcome, most of them new."""
        record = self.record
        first = record(value="1")
        number = int(first["recordId"][1:])
        return [first, *(record() for _ in range(34)), first, record(number, value="2"),
                record(type="negative", value="9", destinationId=f"poor{number}"), record(unit="")]

    def load(self):
        while True:
            self.request("POST", "/records/batch", self.batch())
            self.request("GET", "/stats")
            self.request("GET", "/records/nothing")
            self.request("POST", "/records/batch", self.batch()[:2], self.limited)
            time.sleep(0.1)

    def fires(self, alert, seconds=60):
        found = wait_for(f"the alert {alert}", lambda: self.firing().get(alert), seconds)
        annotations = found["annotations"]
        if "no value" in str(annotations) or not annotations["runbook_url"].endswith(f"/{alert}.md"):
            sys.exit(f"!! {alert}: {annotations}")
        say(f"{alert} fires: {annotations['summary']}")

    def faults(self):
        five = {"MillraceSinkHalted", "MillraceRecordsLost", "MillraceBacklog", "MillracePostgresUnreachable", "MillraceVerifyDiffers"}
        wait_for("outcomes of every sink", lambda: len(self.ask("query", query="millrace_published_total > 100")) == 4, 120)
        self.millrace("verify", check=True)
        wait_for("the result of verify", lambda: self.ask("query", query="millrace_verify_differences == 0"))
        if early := five & self.firing().keys():
            sys.exit(f"!! before any fault: {early}")
        say("under load, verified; no alert of the five fires")
        self.cut.set(False)
        self.fires("MillracePostgresUnreachable")
        self.fires("MillraceBacklog")
        for shard in range(self.spec["shards"]):
            self.redis("XTRIM", f"{{{NAME}.{shard}}}:records", "MAXLEN", "1")
        self.cut.set(True)
        self.fires("MillraceRecordsLost")
        wait_for("Postgres to be used again", lambda: "MillracePostgresUnreachable" not in self.firing(), 120)
        wait_for("the backlog to be applied", lambda: "MillraceBacklog" not in self.firing(), 120)
        say("Postgres is back, and both alerts are over")
        self.redis("CONFIG", "SET", "maxmemory", "1mb")
        self.fires("MillraceRedisUnavailable")
        self.redis("CONFIG", "SET", "maxmemory", "0")
        self.redis("XGROUP", "DESTROY", f"{{{NAME}.0}}:records", "workers")
        self.fires("MillraceStreamRecreated")
        self.redis("DEL", f"{{{NAME}.alerts}}:cursor")
        self.fires("MillraceSinkHalted")
        entry = self.redis("XREVRANGE", f"{NAME}.events", "+", "-", "COUNT", "500").splitlines()
        oldest = [line for line in entry if re.fullmatch(r"\d+-\d+", line)][-1]
        self.redis("XDEL", f"{NAME}.events", oldest)
        if self.millrace("verify").returncode != 1:
            sys.exit("!! verify did not find the deleted entry")
        self.fires("MillraceVerifyDiffers")
        # A publisher that is far behind reads Postgres.
        self.millrace("sinks", "rewind", "events", "--to-seq", "0:1", "--repeat", check=True)
        wait_for("reads of Postgres", lambda: self.ask("query", query="rate(millrace_publisher_postgres_reads_total[15s])"))

    def panels(self):
        """Each query of each panel has a number at some time of the run. What stands for none counts as none."""
        end, empty, count = time.time(), [], 0
        values = {"$__rate_interval": "15s", "$__range": "5m", "$namespace": ".*", "$pipeline": ".*"}
        for path in DASHBOARDS:
            for panel in json.loads(path.read_text())["panels"]:
                for target in panel.get("targets", ()):
                    expression = target["expr"].replace(" or vector(0)", "")
                    for name, value in values.items():
                        expression = expression.replace(name, value)
                    series = self.ask("query_range", query=expression, start=BEGAN, end=end, step="1s")
                    count += 1
                    if not any(math.isfinite(float(value)) for one in series for _, value in one["values"]):
                        empty.append(f"{path.stem}: {panel['title']}: {expression}")
        if empty:
            sys.exit("!! panels without data:\n" + "\n".join(empty))
        say(f"{count} queries of {len(DASHBOARDS)} dashboards have data")


def main():
    with tempfile.TemporaryDirectory(prefix="millrace-alerts.") as folder, contextlib.ExitStack() as stack:
        live = Live(pathlib.Path(folder), stack)
        try:
            traces.start(live, os.environ["MILLRACE_COLLECTOR"])
            live.pipeline()
            traces.check(live, wait_for, say)
            live.operator()
            live.prometheus()
            threading.Thread(target=live.load, daemon=True).start()
            live.faults()
            live.panels()
        except BaseException:
            for log in sorted(pathlib.Path(folder).glob("*.log")):
                print(f"---- {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
            raise


main()
