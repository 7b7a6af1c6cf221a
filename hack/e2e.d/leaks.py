"""Secrets, and the search for them in all that a run shows: logs, metrics, answers, objects, Events, process titles.

A secret is searched as it is, percent-encoded, and in base64 at each of the three offsets that it can have in a longer
text. The values of Secrets are left out of the search, for they are there on purpose.
"""

import base64
import glob
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, unquote

from kube import NAMESPACE, Failed, get, kubectl, run

SHORTEST = 12  # Bytes; a shorter value may occur by chance.


def sensitive(value):
    """The parts of a Secret's value that nobody may see: the password of a URL, the lines of a private key, or all of it."""
    if "PRIVATE KEY-----" in value:
        keys = re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END", value, re.DOTALL)
        # The first line of two keys of one kind begins alike.
        lines = [line for key in keys for line in key.split() if len(line) >= SHORTEST]
        return lines[1:] or lines
    if "-----BEGIN" in value:
        return []
    password = re.match(r"[a-z+]+://[^/?#]*?:([^/?#]*)@", value)
    if password:
        return [unquote(password.group(1))]
    return [value.strip()]


def in_base64(value):
    """The value in base64, without the characters that its neighbours in a longer text decide."""
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + value).decode()
        begin, end = (offset * 8 + 5) // 6, (offset + len(value)) * 8 // 6
        yield text[begin:end]


def forms(secret):
    """Each form that a secret is searched in, by its name."""
    lower = lambda text: re.sub("%..", lambda code: code.group().lower(), text)
    written = {"plain": secret, "percent-encoded": quote(secret, safe=""), "percent-encoded but for /": quote(secret)}
    written.update({f"{name} in lower case": lower(text) for name, text in written.items() if "%" in text})
    found = {"JSON": json.dumps(secret)[1:-1], "hexadecimal": secret.encode().hex(), **written}
    for name, text in written.items():
        for offset, encoded in enumerate(in_base64(text.encode())):
            found[f"{name}, base64 at {offset}"] = encoded
            found[f"{name}, base64 for URLs at {offset}"] = encoded.replace("+", "-").replace("/", "_")
    return found


def search(secrets, outputs):
    """Where a secret occurs: lines that name the secret, its first form and the output, and never its value."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    found = []
    for output, text in outputs.items():
        for name, texts in wanted.items():
            form = next((form for form, wanted_text in texts.items() if wanted_text in text), None)
            found += [f"{name}, {form}, in {output}"] if form else []
    return found


def check_search():
    """The search finds a secret in each form: else a run without a finding would mean nothing."""
    secret = "planted/p%C3%A4ss+w%20rd:x@y"
    wrapped = [secret, quote(secret), quote(secret, safe=""), json.dumps({"url": f"redis://me:{secret}@host"})]
    for text in (secret, quote(secret, safe="")):
        wrapped += [base64.b64encode(b"x" * offset + text.encode() + b"yz").decode() for offset in range(3)]
    for text in wrapped:
        if not search({"a": secret}, {"a log": f"before {text} after"}):
            raise Failed(f"the search does not find {text}")
    if search({"a": secret}, {"a log": "planted/p"}):
        raise Failed("the search finds what is not there")


def secrets_of(namespace):
    """The parts of all Secrets of a namespace that nobody may see, by the Secret, its key and a number."""
    found = {}
    for secret in json.loads(run("kubectl", "-n", namespace, "get", "secrets", "-o", "json"))["items"]:
        # Helm's record of a release holds its manifest, with the Secrets in it.
        if secret["type"].startswith("helm.sh/"):
            continue
        for key, value in secret.get("data", {}).items():
            parts = sensitive(base64.b64decode(value).decode(errors="replace")) if key not in ("ca.crt", "tls.crt") else []
            # Also each run of plain characters: the rest may be escaped in more ways than are searched.
            parts += [plain for part in parts for plain in re.findall(r"[A-Za-z0-9_-]+", part) if plain != part]
            parts = [part for part in parts if len(part.encode()) >= SHORTEST]
            found.update({f"{secret['metadata']['name']}, key {key}, {n}": part for n, part in enumerate(parts)})
    return found


def shown(*command):
    """Both outputs of a command, whatever its end."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    return done.stdout + done.stderr


def all_pods():
    return json.loads(run("kubectl", "get", "pods", "-A", "-o", "json"))["items"]


def logs():
    """The logs of each container of each pod, and those of its previous one."""
    commands = {}
    for pod in all_pods():
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        spec = pod["spec"]
        for container in spec["containers"] + spec.get("initContainers", []):
            one = ("kubectl", "-n", namespace, "logs", name, "-c", container["name"])
            commands[f"the log of {name}/{container['name']}"] = one
            commands[f"the previous log of {name}/{container['name']}"] = (*one, "--previous")
    return commands


def objects():
    """Every object but Secrets, as YAML and as described. Events and termination messages are among them."""
    commands = {}
    for scope, flags in (("true", ("-A",)), ("false", ())):
        kinds = run("kubectl", "api-resources", "--verbs=list", f"--namespaced={scope}", "-o", "name").split()
        for kind in (kind for kind in kinds if kind != "secrets"):
            commands[f"kubectl get {kind} -o yaml"] = ("kubectl", "get", kind, *flags, "-o", "yaml", "--show-managed-fields")
            commands[f"kubectl describe {kind}"] = ("kubectl", "describe", kind, *flags)
    # It shows their keys and sizes only.
    commands["kubectl describe secrets"] = ("kubectl", "describe", "secrets", "-A")
    return commands


def answers():
    """What the processes of all pipelines and the operator answer, and what commands in their pods print."""
    commands = {}
    curl = ("kubectl", "-n", NAMESPACE, "exec", "toolbox", "--", "curl", "-sSki", "--max-time", "10")
    for pod in get("pods", selector="app.kubernetes.io/name in (millrace, millrace-operator)"):
        name, address = pod["metadata"]["name"], pod["status"].get("podIP")
        component = pod["metadata"]["labels"].get("app.kubernetes.io/component")
        ports = {port["name"]: port["containerPort"] for c in pod["spec"]["containers"] for port in c.get("ports", [])}
        for title, port in ports.items() if address else ():
            scheme = "https" if title == "https" else "http"
            for path in ("/status", "/metrics", "/health", "/ready", "/openapi.json", "/stats"):
                commands[f"{path} of {name}, port {title}"] = (*curl, f"{scheme}://{address}:{port}{path}")
        for words in (("config",), ("sinks", "list"), ("keys", "list")) if component in ("serve", "work") else ():
            one = ("kubectl", "-n", NAMESPACE, "exec", name, "--", "millrace", *words)
            commands[f"millrace {' '.join(words)} in {name}"] = one
    psql = "PGPASSWORD=$POSTGRES_PASSWORD exec psql -h 127.0.0.1 -U millrace -Atc 'select application_name, query from pg_stat_activity'"
    commands["pg_stat_activity"] = ("kubectl", "-n", NAMESPACE, "exec", "millrace-dev-postgres-0", "--", "sh", "-c", psql)
    return commands


def titles():
    """The title of each process of this machine, on which the pods run, by its number."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                found[path] = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # It ended.
    return found


def outputs(seen=None):
    """All that the run shows now, by where it is; `seen` is added."""
    # First, for the commands below are processes, too.
    found = dict(titles(), **(seen or {}))
    commands = {**logs(), **objects(), **answers()}
    with ThreadPoolExecutor(4) as pool:
        found.update(zip(commands, pool.map(lambda command: shown(*command), commands.values())))
    return found


def require(found):
    """The outputs that a search must have read: one of each kind, with a word that is in it."""
    kinds = {
        "the log of records-serve": "event", "the log of records-work": "event", "the log of millrace-": "event",
        "the log of millrace-dev-postgres": "database system", "/status of records-work": "pipelineId",
        "/metrics of records-serve": "millrace_", "millrace config in records-work": "redis-url",
        "kubectl get pods": "containerStatuses", "kubectl get events.events.k8s.io": "reason",
        "kubectl describe pods": "Containers:", "kubectl describe recordpipelines": "Conditions:",
        "kubectl get configmaps": "threshold", "pg_stat_activity": "millrace", "/proc/": "millrace",
    }  # fmt: skip
    for begin, word in kinds.items():
        if not any(name.startswith(begin) and word in text for name, text in found.items()):
            raise Failed(f"the search read nothing of: {begin} (with {word})")


def none(secrets, found):
    """Fails where one of the secrets is in an output; gives how much was searched."""
    require(found)
    leaks = search(secrets, found)
    if leaks:
        raise Failed(f"{len(leaks)} secrets are shown:\n" + "\n".join(leaks[:20]))
    size = sum(map(len, found.values()))
    return f"{len(secrets)} secrets, each in up to {len(forms('/'))} forms, in {len(found)} outputs of {size / 1e6:.1f} MB: none"
