"""The checks of hack/images-check. Reads files of the repository, and never writes."""

import copy
import os
import re
import sys

import compose
from files import dockerfile, expect, problems, read


def step(value, key):
    return value[int(key)] if isinstance(value, list) else value[key]


def patched(config, patches):
    """The configuration with the patches of a profile (RFC 6902: add)."""
    config = copy.deepcopy(config)
    for patch in patches:
        *keys, last = patch["path"].strip("/").split("/")
        expect(patch["op"] == "add", f"skaffold.yaml: {patch['path']}: only add is supported here")
        at = config
        try:
            for key in keys:
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
expect(re.fullmatch(r"skaffold/v4beta\d+", config["apiVersion"]) and config["kind"] == "Config", "skaffold.yaml: not of a supported version")
skaffold(config, "without a profile")
profiles = {profile["name"]: profile for profile in config["profiles"]}
expect(set(profiles) == {"dev", "prod"}, "skaffold.yaml: its profiles are dev and prod")
for name, profile in profiles.items():
    skaffold(patched(config, profile["patches"]), name)

kind = read("kind-config.yaml")
expect(kind["kind"] == "Cluster" and kind["apiVersion"] == "kind.x-k8s.io/v1alpha4", "kind-config.yaml: not a Cluster of v1alpha4")
expect([node["role"] for node in kind["nodes"]] == ["control-plane"], "kind-config.yaml: one node, the control plane")
for mapping in kind["nodes"][0]["extraPortMappings"]:
    expect(all(1 <= mapping[port] <= 65535 for port in ("containerPort", "hostPort")), "kind-config.yaml: a port is none")

compose.check()

for problem in dict.fromkeys(problems):
    print(f"!! {problem}", file=sys.stderr)
if problems:
    sys.exit(1)
print("ok  skaffold.yaml, kind-config.yaml, compose.yaml and the Dockerfile agree")
