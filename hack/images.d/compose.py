"""Compares compose.yaml with the Dockerfile, docs/configuration.md and docs/commands.md. hack/docs-check compares those two
pages with the flags and variables in the code."""

import os
import re
from urllib.parse import urlsplit

from files import dockerfile, expect, instructions, read

SECRETS = {"REDIS_PASSWORD", "POSTGRES_PASSWORD", "MILLRACE_BOOTSTRAP_KEY"}
# What each URL has to be: variable, scheme, user, port and path, with the server's service as the host.
URLS = {
    "redis": ("MILLRACE_REDIS_URL", "default", 6379, ""),
    "postgres": ("MILLRACE_POSTGRES_URL", "millrace", 5432, "/millrace"),
}


def fault(holds, message):
    expect(holds, f"compose.yaml: {message}")


def text_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def flags_of(command):
    """The flags of a command, those of its groups included."""
    page = text_of("docs/commands.md")
    groups = dict(re.findall(r"^\| \*(\w+)\* \| (.*) \|$", page, re.M))
    row = re.search(rf"^\| `millrace {command}` \|[^|]*\| (.*) \|$", page, re.M)
    fault(row, f"docs/commands.md has no command {command}")
    cell = re.sub(r"\*(\w+)\*", lambda group: groups[group[1]], row[1] if row else "")
    return set(re.findall(r"`(--[\w-]+)`", cell))


def variables_of(command):
    """The variables of a command: those of its flags."""
    rows = re.findall(r"^\| `(--[\w-]+)[^|]*\| `(\w+)` \|", text_of("docs/configuration.md"), re.M)
    flags = flags_of(command)
    return {variable for flag, variable in rows if flag in flags}


def default_port(flag):
    """The port that a flag of serve has by default."""
    row = re.search(rf"^\| `{flag}` \| `\w+` \| `[^`]*:(\d+)` \|", text_of("docs/configuration.md"), re.M)
    fault(row, f"docs/configuration.md has no default port of {flag}")
    return int(row[1]) if row else 0


def plain(value):
    """Text with its interpolations replaced, so that a URL can be split."""
    return re.sub(r"\$\{\w+:\?[^}]*\}", "secret", str(value))


def check_secrets(services):
    """Each secret comes from the environment, none has a default, and git ignores the file that holds them."""
    for name, service in services.items():
        command = service["command"]
        for key, value in [*service.get("environment", {}).items(), *zip(["", *command], command)]:
            # Compose does not start without `${NAME:?message}`.
            used = re.findall(r"\$\{(\w+):\?[^}]+\}", str(value))
            fault("$" not in plain(value), f"{name}: {key}: only ${{NAME:?message}}, which has no default")
            fault(set(used) <= SECRETS, f"{name}: {key}: {used} is no secret of this file")
            if re.search(r"PASSWORD|AUTH|KEY|URL|--requirepass", key):
                fault(len(used) == 1, f"{name}: {key}: its secret does not come from the environment")
    fault("MILLRACE_BOOTSTRAP_KEY" in services["serve"]["environment"], "serve: it has no first key")
    fault(".env" in text_of(".gitignore").split(), "git does not ignore .env")


def check_dependencies(services):
    needed = {"migrate": {"postgres"}, "serve": {"redis", "postgres", "migrate"}, "work": {"redis", "postgres", "migrate"}}
    for name, others in needed.items():
        depends = services[name].get("depends_on", {})
        fault(set(depends) == others, f"{name}: it depends on {sorted(depends)}, not on {sorted(others)}")
        for other, how in depends.items():
            wanted = "service_completed_successfully" if other == "migrate" else "service_healthy"
            fault(how["condition"] == wanted, f"{name}: {other}: the condition is not {wanted}")
            fault(other == "migrate" or "healthcheck" in services.get(other, {}), f"{other}: it has no health check")
    fault(services["migrate"].get("restart", "no") == "no", "migrate: it ends, and a restart repeats it")


def check_service(name, service, exposed):
    """One of migrate, serve and work: image, command, variables, URLs, manifest, health."""
    build = service["build"]
    path = os.path.join(build["context"], build.get("dockerfile", "Dockerfile"))
    stages, arguments = dockerfile(path)
    fault(build["target"] in stages and build["target"] == "service", f"{name}: {build['target']} is not the stage service")
    for argument in build.get("args", {}):
        fault(argument in arguments, f"{name}: {path} has no ARG {argument}")
    fault(service.get("pull_policy") == "build", f"{name}: Compose may run an image of this name from a registry")
    fault(service["command"] == [name], f"{name}: its command is {service['command']}")
    variables = service["environment"]
    for variable in sorted(set(variables) - variables_of(name)):
        fault(False, f"{name}: {variable} is no variable of millrace {name} in docs/configuration.md and docs/commands.md")
    for server, (variable, user, port, path) in URLS.items():
        url = urlsplit(plain(variables.get(variable, "")))
        found = (url.scheme, url.username, url.hostname, url.port, url.path)
        fault(found == (server, user, server, port, path), f"{name}: {variable} is {found}")
    folder, target, mode = service["volumes"][0].split(":")
    folder_of, manifest = os.path.split(variables.get("MILLRACE_PIPELINE", ""))
    fault(folder_of == target and mode == "ro", f"{name}: {target} does not hold MILLRACE_PIPELINE, read-only")
    fault(os.path.isfile(os.path.join(folder, manifest)), f"{name}: {folder} has no {manifest}")
    if name != "migrate":
        check_health(name, service, exposed)


def check_health(name, service, exposed):
    """The health check asks /ready on the health port, by a program that the image has."""
    port = default_port("--health-listen") if name == "serve" else 0
    listen = service["environment"].get("MILLRACE_HEALTH_LISTEN", f":{port}")
    if "healthcheck" not in service:
        return fault(False, f"{name}: it has no health check")
    kind, program, *_, url = service["healthcheck"]["test"]
    debug = ":debug" in service["build"].get("args", {}).get("RUNTIME_IMAGE", "")
    fault(kind == "CMD" and program == "/busybox/wget" and debug, f"{name}: only a debug image has a wget, in /busybox")
    fault(url == f"http://127.0.0.1:{listen.rsplit(':', 1)[1]}/ready", f"{name}: {url} is not /ready at its health port")
    fault(urlsplit(url).port in exposed, f"{name}: the image exposes no port of {url}")


def check_ports(services, exposed):
    """Only serve is published, on loopback, with its default ports."""
    ports = [default_port("--listen"), default_port("--health-listen")]
    fault(set(ports) == exposed, f"the Dockerfile's stage service exposes {sorted(exposed)}, not {ports}")
    for name, service in services.items():
        wanted = [f"127.0.0.1:{port}:{port}" for port in ports] if name == "serve" else []
        fault(service.get("ports", []) == wanted, f"{name}: its ports are not {wanted}")


def check_servers(services, volumes):
    """Redis and Postgres are as docs/servers.md wants them: versions, settings, and data that is kept."""
    page = text_of("docs/servers.md")
    of_redis = re.search(r"^Redis (\d+)\.\d+ or later with\n\n```\n(.*?)```", page, re.M | re.S)
    of_postgres = re.search(r"^Postgres (\d+) or later(.*?)\.", page, re.M | re.S)
    if not of_redis or not of_postgres:
        return fault(False, "docs/servers.md does not name the servers and their settings")
    redis, postgres = services["redis"], services["postgres"]
    for name, least in (("redis", of_redis[1]), ("postgres", of_postgres[1])):
        repository, _, tag = services[name]["image"].partition(":")
        fault(repository == f"docker.io/library/{name}", f"{name}: {repository} is not the official image")
        fault(int(tag) >= int(least), f"{name}: {tag} is older than docs/servers.md wants")
        kept = [volume.split(":")[0] for volume in services[name]["volumes"]]
        fault(kept == [name] and name in volumes, f"{name}: its data is in no volume of its own")
    settings = re.findall(r"^([\w-]+) (\w+)$", of_redis[2], re.M)
    fault(len(settings) == 3, f"docs/servers.md wants {settings} of Redis, not three settings")
    for setting, value in settings:
        given = (f"--{setting}", value) in zip(redis["command"], redis["command"][1:])
        fault(given, f"redis: {setting} is not {value}")
    settings = re.findall(r"`(\w+)`", of_postgres[2])
    fault(len(settings) == 3, f"docs/servers.md wants {settings} of Postgres, not three settings")
    for setting in settings:
        fault(f"{setting}=on" in postgres["command"], f"postgres: {setting} is not on")


def check():
    config = read("compose.yaml")
    services, volumes = config["services"], config["volumes"]
    ours = ("migrate", "serve", "work")
    if set(services) != {"redis", "postgres", *ours}:
        return fault(False, "its services are not redis, postgres, migrate, serve and work")
    stage, exposed = "", set()
    for word, rest in instructions("Dockerfile"):
        stage = rest.split()[-1] if word == "FROM" else stage
        if word == "EXPOSE" and stage == "service":
            exposed = {int(port) for port in rest.split()}
    check_secrets(services)
    check_dependencies(services)
    check_ports(services, exposed)
    check_servers(services, volumes)
    for name in ours:
        check_service(name, services[name], exposed)
