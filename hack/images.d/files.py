"""Reads YAML files and Dockerfiles of the repository, and collects problems. Never writes."""

import fnmatch
import os
import re
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
    """A Dockerfile's (instruction, rest), continued lines joined, comments left out."""
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
        whole = any(member.startswith(f"{folder}/") for folder in copied)
        expect(whole or f"{member}/Cargo.toml" in copied, f"{path}: no COPY of {member}/Cargo.toml: cargo would refuse the workspace")
    expect(stages[-2:] == ["service", "operator"], f"{path}: its last stages are service and operator")
    return stages, arguments
