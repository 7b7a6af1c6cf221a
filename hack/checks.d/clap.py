"""Reads commands and flags off clap's derive attributes."""

import re

import rust


def attributes(code, index):
    """Attributes that begin at an index, each as tokens, and the index behind them."""
    found = []
    while index < len(code) and code[index].text == "#":
        end = rust.closing(code, index + 1)
        found.append(code[index + 2 : end])
        index = end + 1
    return found, index


def settings(found, *names):
    """Settings of `#[arg(…)]` and the like: the tokens of each value by name."""
    made = {}
    for attribute in found:
        if attribute[0].text in names and len(attribute) > 1:
            for part in rust.split(attribute[2:-1]):
                made[part[0].text] = part[2:]
    return made


def kebab(name):
    return re.sub(r"(?<!^)(?=[A-Z])|_", "-", name).lower()


def crate(path):
    return path.parts[: path.parts.index("src")]


class Reader:
    """Finds the flags of each command. `report` takes a path, a token and a text."""

    def __init__(self, sources, report):
        self.report = report
        self.types = {}
        self.roots = []
        self.pairs = {}
        for path, code in sources.items():
            for index, token in enumerate(code):
                if token.text != "#" or code[index + 1].text != "[" or code[index + 2].text != "derive":
                    continue
                found, after = attributes(code, index)
                derived = set(rust.shown(found[0]).removeprefix("derive(").rstrip(")").replace("clap::", "").split(","))
                if not derived & {"Parser", "Args", "Subcommand"}:
                    continue
                while code[after].text not in ("struct", "enum"):
                    after = rust.closing(code, after) + 1 if code[after].text == "(" else after + 1
                name, body = code[after + 1].text, after + 2
                self.types[path, name] = (code[after].text, code[body + 1 : rust.closing(code, body)])
                if "Parser" in derived:
                    command = settings(found, "command").get("name")
                    if command:
                        self.roots.append((path, name, command[0].text))
                    else:
                        report(path, code[after], f"the command {name} has no name")

    def resolve(self, path, kind):
        """The type that a field's tokens name: in this file, in the module that they name, or the only one of its crate."""
        words = [token.text for token in kind if token.kind == "word" and token.text not in ("Box", "Option")]
        if (path, words[-1]) in self.types and len(words) == 1:
            return path, words[-1]
        found = [
            (other, name)
            for other, name in self.types
            if name == words[-1]
            and crate(other) == crate(path)
            and (len(words) == 1 or words[-2] in (other.stem, other.parent.name))
        ]
        if len(found) != 1:
            self.report(path, kind[0], f"{rust.shown(kind)} is not one type of clap's")
        return found[0] if len(found) == 1 else None

    def fields(self, path, body, flags, below):
        """Adds the flags of a body's fields, and of what is flattened into it, to `flags`, and subcommands to `below`."""
        for field in rust.split(body):
            found, index = attributes(field, 0)
            words = (token for token in field[index:] if token.kind == "word")
            name = next(token for token in words if token.text not in ("pub", "crate", "super", "in"))
            kind = field[next(at for at, token in enumerate(field) if at > index and token.text == ":") + 1 :]
            command, argument = settings(found, "command"), settings(found, "arg")
            if "flatten" in command or "subcommand" in command:
                type_ = self.resolve(path, kind)
                if type_ and "flatten" in command:
                    self.fields(type_[0], self.types[type_][1], flags, below)
                elif type_:
                    below.append(type_)
                continue
            variable = argument.get("env")
            if variable is not None and (not variable or variable[0].kind != "string"):
                self.report(path, name, f"the variable of {name.text} cannot be read off")
                variable = None
            if {"short", "alias", "aliases", "visible_alias"} & set(argument):
                self.report(path, name, f"{name.text} has a name that docs-check does not read")
            if "long" in argument:
                long = argument["long"]
                flag = "--" + (long[0].text if long else kebab(name.text))
                flags.add(flag)
                variables, *_ = self.pairs.setdefault(flag, (set(), path, name))
                variables |= {variable[0].text} if variable else set()
            elif variable:
                self.report(path, name, f"{name.text} has a variable and no flag")

    def walk(self, path, name, command, inherited, commands):
        """Adds the commands of a type, each with its flags."""
        shape, body = self.types[path, name]
        if shape == "struct":
            flags, below = set(inherited), []
            self.fields(path, body, flags, below)
            if not below:
                commands[command] = flags
            for type_ in below:
                self.walk(*type_, command, flags, commands)
            return
        for variant in rust.split(body):
            found, index = attributes(variant, 0)
            given = settings(found, "command").get("name")
            below = f"{command} {given[0].text if given else kebab(variant[index].text)}"
            rest = variant[index + 1 :]
            if not rest:
                commands[below] = set(inherited)
            elif rest[0].text == "{":
                flags = set(inherited)
                self.fields(path, rest[1:-1], flags, [])
                commands[below] = flags
            else:
                type_ = self.resolve(path, rest[1:-1])
                if type_:
                    self.walk(*type_, below, inherited, commands)


def commands(sources, report):
    """Flags of each command, and variables, file and token of each flag."""
    reader, found = Reader(sources, report), {}
    for path, name, command in reader.roots:
        reader.walk(path, name, command, set(), found)
    return found, reader.pairs
