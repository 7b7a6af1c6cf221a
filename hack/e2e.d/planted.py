"""Pipelines with secrets that are refused in each way, and the search for these and all other secrets in what a run shows."""

import json
import secrets
import subprocess
import tempfile

import leaks
from kube import Failed, condition, kubectl, pods, step, until
from load import AUTHORITY, TLS, api

known = {}  # Every secret so far, by its name.


def word(what):
    """A value that occurs nowhere else, with characters that URLs and JSON write in another way."""
    return f"planted-{what}-{secrets.token_hex(12)}/+ ä:\"@"


def make(name, values):
    kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}))


def pair():
    """A certificate of nobody's authority, and its key."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=planted"]
        subprocess.run([*command, "-keyout", f"{folder}/key", "-out", f"{folder}/crt"], check=True, capture_output=True)
        with open(f"{folder}/crt") as certificate, open(f"{folder}/key") as key:
            return {"tls.crt": certificate.read(), "tls.key": key.read()}


def urls(redis, postgres, more=""):
    """URLs of the development servers with these passwords."""
    scheme, mode = ("rediss", "?sslmode=verify-full") if TLS else ("redis", "")
    quoted = leaks.quote(redis, safe=""), leaks.quote(postgres, safe="")
    return {
        "redis": f"{scheme}://default:{quoted[0]}@millrace-dev-redis.millrace-system.svc:6379{more}",
        "postgres": f"postgres://millrace:{quoted[1]}@millrace-dev-postgres.millrace-system.svc:5432/millrace{more or mode}",
    }


def of(secret, server, files=None):
    """A server by the Secret of its URL, with the certificate of a client."""
    tls = {**(AUTHORITY if TLS else {}), **({"clientCertSecretRef": {"name": files}} if files else {})}
    return {"urlSecretRef": {"name": secret, "key": server}, **({"tls": tls} if tls else {})}


def pipeline(name, redis, postgres, **more):
    """Applies a pipeline; there is nothing to drain."""
    auth = {"bootstrapKeySecretRef": {"name": name, "key": "key"}}
    spec = {"shards": 1, "drainSeconds": 1, "redis": redis, "postgres": postgres, "auth": auth, **more}
    resource = {"apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline", "metadata": {"name": name}}
    kubectl("apply", "-f", "-", text=json.dumps({**resource, "spec": spec}))


def reports(name, *reasons):
    """Waits until the pods of a pipeline report one of the reasons."""
    last = lambda: condition(name, "Degraded").get("reason")
    until(f"{name} to report {' or '.join(reasons)}, not {last()}", lambda: last() in reasons, 120)
    return last()


@step("secrets that are refused, searched in all outputs")
def refuse():
    """Error paths show secrets sooner than others: wrong passwords, URLs that are none, keys of no form, wrong files."""
    key = lambda: f"mk_{secrets.token_urlsafe(32)}"
    made = ["planted-denied", "planted-redis", "planted-invalid", "planted-files"]
    for name in made:
        option = f"?{leaks.quote(word('option'))}=1" if name == "planted-invalid" else ""
        first = word("key") if name == "planted-invalid" else key()
        make(name, {"key": first, **urls(word("redis"), word("postgres"), option)})
    # A migration ends with the first, and pods run with the second, which has HTTPS, too.
    pipeline("planted-denied", of("planted-denied", "redis"), of("planted-denied", "postgres"))
    make("planted-https", pair())
    serve = {"tls": {"certSecretRef": {"name": "planted-https"}}}
    pipeline("planted-redis", of("planted-redis", "redis"), of("millrace-dev-postgres", "url"), serve=serve)
    # No URL and no key of these can be used.
    pipeline("planted-invalid", of("planted-invalid", "redis"), of("planted-invalid", "postgres"))
    # A client's certificate with the key of another one, and one whose key is no key.
    make("planted-swapped", {**pair(), "tls.key": pair()["tls.key"]})
    junk = f"-----BEGIN PRIVATE KEY-----\n{word('junk')}\n-----END PRIVATE KEY-----\n"
    make("planted-junk", {**pair(), "tls.key": junk})
    redis, postgres = of("planted-files", "redis", "planted-swapped"), of("planted-files", "postgres", "planted-junk")
    pipeline("planted-files", redis, postgres)
    seen = [
        reports("planted-denied", "PostgresAccessDenied"),
        reports("planted-redis", "RedisAccessDenied"),
        reports("planted-invalid", "SecretInvalid"),
        reports("planted-files", "TlsFilesInvalid", "SecretInvalid"),
    ]
    # A key that the API refuses, and one that it makes.
    known["a refused key"] = key()
    status = api("/stats", key=known["a refused key"])[0]
    if status != 401:
        raise Failed(f"a key that nobody made was answered {status}")
    printed = kubectl("exec", sorted(pods("work"))[0], "--", "millrace", "keys", "create", "--name", "planted", "--scope", "read")
    known["a key that was made"] = next(part for part in printed.split() if part.startswith("mk_"))
    until("the key that was made to be accepted", lambda: api("/stats", key=known["a key that was made"])[0] == 200, 60)
    found = look()
    kubectl("delete", "rpl", *made, "--timeout=120s")
    return f"{', '.join(seen)}: {found}"


def look():
    """Searches all outputs for every secret so far."""
    leaks.check_search()
    known.update(leaks.secrets_of("millrace-system"))
    return leaks.none(known, leaks.outputs())


@step("no secret in any output")
def search():
    return look()
