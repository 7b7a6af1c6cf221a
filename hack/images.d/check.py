"""The checks of hack/images-check. Reads files of the repository, and never writes."""

import copy
import fnmatch
import os
import re
import sys
import tomllib

import yaml

problems = []


def expect(holds, message):
    if not holds:
        problems.append(message)


class Unique(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML's own reader lets pass."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path):
    with open(path, encoding="utf-8") as file:
        return yaml.load(file, Unique)


def instructions(path):
    """A Dockerfile's (instruction, rest), lines that go on joined, comments left out."""
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file.read().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def ignored(path, rules):
    """Whether .dockerignore keeps a path out of the context: the last rule that fits decides."""
    out = False
    for rule in rules:
        pattern = rule.lstrip("!").rstrip("/")
        parents = [path] + [path[:i] for i, c in enumerate(path) if c == "/"]
        names = [os.path.basename(p) for p in parents] if pattern.startswith("**/") else parents
        if any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for name in names):
            out = not rule.startswith("!")
    return out


def dockerfile(path):
    """Its stages and arguments; each COPY takes what is there, and every member of the workspace is known to cargo."""
    stages, arguments, copied = [], set(), set()
    with open(".dockerignore", encoding="utf-8") as file:
        rules = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    for word, rest in instructions(path):
        if word == "ARG":
            arguments.add(rest.split("=")[0])
        if word == "FROM":
            base = next(part for part in rest.split() if not part.startswith("--"))
            for name in re.findall(r"\$\{(\w+)\}", base):
                expect(name in arguments, f"{path}: FROM {base}: no such ARG before it")
            stages.append(re.search(r" AS (\S+)$", rest, re.I).group(1))
        if word == "COPY":
            source = re.search(r"--from=(\S+)", rest)
            parts = [part for part in rest.split() if not part.startswith("--")]
            if source:
                expect(source[1] in stages[:-1], f"{path}: COPY --from={source[1]}: no such stage before it")
            copied.update([] if source else parts[:-1])
            for part in [] if source else parts[:-1]:
                expect(os.path.exists(part), f"{path}: COPY {part}: is not there")
                expect(not ignored(part.rstrip("/"), rules), f"{path}: COPY {part}: .dockerignore keeps it out")
    with open("Cargo.toml", "rb") as file:
        members = tomllib.load(file)["workspace"]["members"]
    for member in members:
        expect(f"{member}/Cargo.toml" in copied, f"{path}: no COPY of {member}/Cargo.toml: cargo would refuse the workspace")
    expect(stages[-2:] == ["service", "operator"], f"{path}: its last stages are service and operator")
    return stages, arguments


def step(value, key):
    return value[int(key)] if isinstance(value, list) else value[key]


def patched(config, patches):
    """What a profile makes of the configuration, by its patches (RFC 6902: add)."""
    config = copy.deepcopy(config)
    for patch in patches:
        *way, last = patch["path"].strip("/").split("/")
        expect(patch["op"] == "add", f"skaffold.yaml: {patch['path']}: only add is known here")
        at = config
        try:
            for key in way:
                at = step(at, key)
        except (KeyError, IndexError, TypeError):
            expect(False, f"skaffold.yaml: {patch['path']}: nothing is there to add to")
            continue
        if last == "-":
            at.append(patch["value"])
        else:
            at[last] = patch["value"]
    return config


def known(values, key):
    """Whether the chart's values have the key, written as for `helm --set`."""
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def compose(path, stages, exposed):
    """compose.yaml: stages, commands, variables, ports and settings of servers are those of the Dockerfile and the docs."""
    found = read(path)
    with open("docs/configuration.md", encoding="utf-8") as file:
        configuration = file.read()
    servers = configuration.replace("\n", " ")
    with open("docs/commands.md", encoding="utf-8") as file:
        commands = set(re.findall(r"^\| `millrace ([a-z]+)", file.read(), re.M))
    rows = [line for line in configuration.splitlines() if line.startswith("| `--")]
    variables = {name for line in rows for name in re.findall(r"`(MILLRACE_[A-Z_]+)`", line)}
    services, ours = found["services"], ("migrate", "serve", "work")
    expect(set(services) == {"redis", "postgres", *ours}, f"{path}: its services are redis, postgres, migrate, serve and work")
    for name, service in services.items():
        for other, depends in service.get("depends_on", {}).items():
            expect(other in services, f"{path}: {name} depends on {other}, which is not there")
            healthy = depends["condition"] != "service_healthy" or "healthcheck" in services.get(other, {})
            expect(healthy, f"{path}: {other} has no healthcheck")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = os.path.exists(source) if source.startswith(".") else source in found["volumes"]
            expect(there, f"{path}: {name}: {source} is not there")
    for name in ours:
        service = services[name]
        expect(service["build"]["target"] in stages, f"{path}: {name}: no stage {service['build']['target']}")
        expect(service["command"] == [name] and name in commands, f"{path}: {name}: no such command in docs/commands.md")
        for variable in service["environment"]:
            expect(variable in variables, f"{path}: {name}: {variable} is not in docs/configuration.md")
        for port in service.get("ports", []):
            expect(port.split(":")[-1] in exposed, f"{path}: {name}: the image has no port {port.split(':')[-1]}")
    expect("MILLRACE_BOOTSTRAP_KEY" in services["serve"]["environment"], f"{path}: serve has no first key")
    for secret in re.findall(r"(?:PASSWORD|KEY): (.*)", open(path, encoding="utf-8").read()):
        expect(secret.startswith("${"), f"{path}: a secret is in the file")
    redis = " ".join(services["redis"]["command"]).replace("--", "")
    for setting in ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction"):
        expect(setting in redis and f"`{setting}`" in configuration, f"{path}: redis: not {setting}, as docs/configuration.md wants")
    for name, least in (("Redis", 7), ("Postgres", 15)):
        image = services[name.lower()]["image"]
        major = int(re.search(r":(\d+)", image)[1])
        expect(major >= least and f"{name} {least}" in servers, f"{path}: {image} is older than docs/configuration.md wants")


def skaffold(config, name):
    where = f"skaffold.yaml, {name}"
    images = []
    for artifact in config["build"]["artifacts"]:
        docker = artifact["docker"]
        path = os.path.join(artifact["context"], docker["dockerfile"])
        expect(os.path.exists(path), f"{where}: {path} is not there")
        stages, arguments = dockerfile(path)
        expect(docker["target"] in stages, f"{where}: {path} has no stage {docker['target']}")
        for argument in docker.get("buildArgs", {}):
            expect(argument in arguments, f"{where}: {path} has no ARG {argument}")
        images.append(re.sub(r"\W", "_", artifact["image"]))
    for release in config["deploy"]["helm"]["releases"]:
        chart = release["chartPath"]
        expect(os.path.exists(f"{chart}/Chart.yaml"), f"{where}: {chart}/Chart.yaml is not there")
        if not os.path.exists(f"{chart}/values.yaml"):
            continue
        values = read(f"{chart}/values.yaml")
        templates = release.get("setValueTemplates", {})
        for key in [*templates, *release.get("setValues", {})]:
            expect(known(values, key), f"{where}: {chart} has no value {key}")
        used = set()
        for template in templates.values():
            for image in re.findall(r"\{\{\.IMAGE_[A-Z]+_(\w+)\}\}", template):
                expect(image in images, f"{where}: no artifact for {template}")
                used.add(image)
        expect(used == set(images), f"{where}: built and not deployed: {sorted(set(images) - used)}")
    for hook in config["deploy"]["helm"].get("hooks", {}).get("after", []):
        for path in re.findall(r"--filename (\S+)", " ".join(hook["host"]["command"])):
            expect(os.path.exists(path), f"{where}: {path} is not there")
    local = [forward["localPort"] for forward in config["portForward"]]
    expect(len(local) == len(set(local)), f"{where}: a local port is forwarded twice")


config = read("skaffold.yaml")
expect(re.fullmatch(r"skaffold/v4beta\d+", config["apiVersion"]) and config["kind"] == "Config", "skaffold.yaml: not of a known version")
skaffold(config, "as it stands")
profiles = {profile["name"]: profile for profile in config["profiles"]}
expect(set(profiles) == {"dev", "prod"}, "skaffold.yaml: its profiles are dev and prod")
for name, profile in profiles.items():
    skaffold(patched(config, profile["patches"]), name)

kind = read("kind-config.yaml")
expect(kind["kind"] == "Cluster" and kind["apiVersion"] == "kind.x-k8s.io/v1alpha4", "kind-config.yaml: not a Cluster of v1alpha4")
expect([node["role"] for node in kind["nodes"]] == ["control-plane"], "kind-config.yaml: one node, the control plane")
for mapping in kind["nodes"][0]["extraPortMappings"]:
    expect(all(1 <= mapping[port] <= 65535 for port in ("containerPort", "hostPort")), "kind-config.yaml: a port is none")

exposed = {port for word, rest in instructions("Dockerfile") if word == "EXPOSE" for port in rest.split()}
compose("compose.yaml", dockerfile("Dockerfile")[0], exposed)

for problem in dict.fromkeys(problems):
    print(f"!! {problem}", file=sys.stderr)
if problems:
    sys.exit(1)
print("ok  skaffold.yaml, kind-config.yaml, compose.yaml and the Dockerfile hold together")
