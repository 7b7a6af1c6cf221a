"""kubectl and helm, and waiting for what they show."""

import json
import subprocess
import sys
import time

NAMESPACE = "millrace-system"
started = time.monotonic()


class Failed(Exception):
    """A step did not come out as it should."""


def run(*command, check=True, text=None, timeout=300):
    """Runs a command; gives what it printed. A failure shows both outputs."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)[:300]}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done if not check else done.stdout


def kubectl(*arguments, **options):
    return run("kubectl", "-n", NAMESPACE, *arguments, **options)


def get(kind, name=None, selector=None):
    """An object, or the list of a selector's; None when it is not there."""
    arguments = ["get", kind, "-o", "json", "--ignore-not-found"]
    arguments += [name] if name else []
    arguments += ["-l", selector] if selector else []
    out = kubectl(*arguments)
    if not out.strip():
        return None
    return json.loads(out) if name else json.loads(out)["items"]


def patch(name, body, kind="rpl"):
    kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(body))


def condition(name, kind):
    """A pipeline's condition; an empty one when it is not there."""
    pipeline = get("rpl", name) or {}
    found = [c for c in pipeline.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def ready(name):
    """Whether Ready is True of the newest generation; what stands instead otherwise."""
    pipeline = get("rpl", name)
    found = {c["type"]: c for c in pipeline.get("status", {}).get("conditions", [])}
    at, is_ready = pipeline["metadata"]["generation"], found.get("Ready", {})
    return is_ready.get("status") == "True" and is_ready.get("observedGeneration") == at


def until(what, check, seconds=120, every=0.5):
    """Waits until a check gives something true, and gives that."""
    end = time.monotonic() + seconds
    last = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (Failed, subprocess.TimeoutExpired) as error:
            last = error
        if time.monotonic() > end:
            raise Failed(f"waited {seconds} s for {what}; last: {last}")
        time.sleep(every)


def pods(component, pipeline="records"):
    """Pods of a role that are not being deleted, by name."""
    selector = f"app.kubernetes.io/instance={pipeline},app.kubernetes.io/component={component}"
    found = get("pods", selector=selector)
    return {p["metadata"]["name"]: p for p in found if "deletionTimestamp" not in p["metadata"]}


def restarts(found):
    return {name: sum(c["restartCount"] for c in p["status"].get("containerStatuses", [])) for name, p in found.items()}


def step(what):
    """Runs a step, and prints a line with what was seen and how long it took."""

    def decorate(function):
        def stepped(*arguments):
            begun = time.monotonic()
            seen = function(*arguments)
            took, at = time.monotonic() - begun, time.monotonic() - started
            print(f"{at:6.0f} s  ok  {what}: {seen}  [{took:.1f} s]", flush=True)

        return stepped

    return decorate


def fail(error):
    print(f"!! {error}", file=sys.stderr, flush=True)
    for command in (
        ["kubectl", "get", "rpl,pods,jobs", "-A", "-o", "wide"],
        ["kubectl", "-n", NAMESPACE, "get", "rpl", "-o", "yaml"],
        ["kubectl", "-n", NAMESPACE, "get", "events.events.k8s.io", "--sort-by=.metadata.creationTimestamp"],
        ["kubectl", "-n", NAMESPACE, "logs", "deploy/millrace", "--tail=60"],
        ["kubectl", "-n", NAMESPACE, "logs", "deploy/records-work", "--tail=30"],
        ["kubectl", "-n", NAMESPACE, "logs", "deploy/records-serve", "--tail=30"],
    ):
        shown = subprocess.run(command, capture_output=True, text=True)
        print(f"---- {' '.join(command)}\n{shown.stdout[-6000:]}{shown.stderr[-500:]}", file=sys.stderr, flush=True)
    # Once more where the output ends: who sees only its end sees the cause.
    print(f"!! {error}", file=sys.stderr, flush=True)
