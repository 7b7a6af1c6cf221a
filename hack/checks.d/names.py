"""Names that the code gives to the outside, each with the place where it stands.

Each function takes the tokens of files by path, and `report`, which is called with a path, a token and a text where a name
cannot be read off.
"""

import collections
import re

import clap
import rust

LEVELS = ("error", "warn", "info", "debug", "trace")
EVENT = re.compile(r"publisher\.(?!rs\b)[a-z_]+|[a-z0-9_]+(?:\.[a-z0-9_]+){2}")
METRIC = re.compile(r"millrace(?:_[a-z0-9]+){2,}")
VARIABLE = re.compile(r"(?:MILLRACE|OTEL)_[A-Z0-9_]+")
CODE = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")


def texts(code):
    """(index, token) of each string."""
    return ((index, token) for index, token in enumerate(code) if token.kind == "string")


def events(sources, report):
    """Levels and place of each log event: a line has `event = "area.object.event"` and a message as literals."""
    found = {}
    for path, code in sources.items():
        for index, arguments in rust.calls(code, [f"{macro}!" for macro in (*LEVELS, "event")]):
            name = next((part[2].text for part in arguments if rust.shown(part[:2]) == "event=" and len(part) == 3), "")
            if not EVENT.fullmatch(name) or code[index].text == "event":
                report(path, code[index], "a log line without a literal name: event = \"area.object.event\"")
                continue
            if not any(part[0].kind == "string" and " " in part[0].text for part in arguments):
                report(path, code[index], f"log event {name} has no message")
            levels, *_ = found.setdefault(name, (set(), path, code[index]))
            levels.add(code[index].text.upper())
    return found


def spans(code):
    """Names of spans, which have the form of log events."""
    return {arguments[0][0].text for _, arguments in rust.calls(code, [f"{level}_span!" for level in LEVELS])}


def metrics(sources, report):
    """Labels and place of each metric: of each literal of that form."""
    found, names = {}, {}
    for path, code in sources.items():
        for index, token in texts(code):
            if METRIC.fullmatch(token.text):
                found.setdefault(token.text, (set(), path, token))
                if code[index - 6].text == "const":
                    names[clap.crate(path), code[index - 5].text] = token.text
    for path, code in sources.items():
        for index, (name, *given) in rust.calls(code, ("counter!", "gauge!", "histogram!")):
            metric = name[0].text if name[0].kind == "string" else names.get((clap.crate(path), name[-1].text))
            if any(token.kind not in ("string", "word") and token.text != "::" for token in name):
                report(path, code[index], f"a metric whose name cannot be read off: {rust.shown(name)}")
            elif metric:
                found[metric][0].update(*(labels(path, code, part, report) for part in given))
    return found


def labels(path, code, part, report):
    """Names of the labels in an argument: "name" => value, or &labels where that is an array of pairs."""
    if part[0].kind == "string":
        return {part[0].text}
    for index, token in enumerate(code):
        if token.text == part[-1].text and [one.text for one in code[index + 1 : index + 3]] == ["=", "["]:
            pairs = rust.split(code[index + 3 : rust.closing(code, index + 2)])
            return {pair[1].text for pair in pairs if pair[1].kind == "string"}
    report(path, part[0], f"labels that cannot be read off: {rust.shown(part)}")
    return set()


def error_codes(sources, report):
    """Place of each error code: arguments of the constructors of errors, literals after a status, and in files that make
    errors each literal of several words."""
    found, constants = {}, collections.defaultdict(set)
    for code in sources.values():
        for index, token in texts(code):
            if code[index - 6].text == "const":
                constants[code[index - 5].text].add(token.text)
    for path, code in sources.items():
        makes_errors = any(token.text in ("Failure", "Invalid", "ItemError") for token in code)
        code = rust.without_attributes(code)
        for index, token in texts(code):
            if not CODE.fullmatch(token.text) or METRIC.fullmatch(token.text):
                continue
            is_of_status = code[index - 1].text == "," and re.fullmatch(r"[45]\d\d", code[index - 2].text)
            is_fault_point = code[index - 1].text == "(" and code[index - 2].text in ("point", "planted")
            if is_of_status or (makes_errors and "_" in token.text and not is_fault_point):
                found.setdefault(token.text, (path, token))
        for index, arguments in rust.calls(code, ("new", "at", "bare")):
            owner = code[index - 2].text if code[index - 1].text == "::" else ""
            has_status = len(arguments) > 2 and (owner == "Failure" or code[index].text == "bare")
            if not has_status and not (owner == "Invalid" and len(arguments) == 3):
                continue
            given = arguments[1 if has_status else 0]
            if given[-1].kind == "string":
                found.setdefault(given[-1].text, (path, given[-1]))
            elif re.fullmatch(r"(?:\w+::)*[A-Z][A-Z0-9_]*", rust.shown(given)):
                for name in constants[given[-1].text]:
                    found.setdefault(name, (path, given[-1]))
            elif given[-1].text != "code":
                report(path, code[index], f"an error code that cannot be read off: {rust.shown(given)}")
    return found


def variants(sources, name):
    """Place of each variant of enums whose name matches."""
    found = {}
    for path, code in sources.items():
        for index, token in enumerate(code):
            if token.text == "enum" and re.fullmatch(name, code[index + 1].text):
                body = code[index + 3 : rust.closing(code, index + 2)]
                for part in rust.split(rust.without_attributes(body)):
                    found.setdefault(part[0].text, (path, part[0]))
    return found


def reasons(path, code):
    """Place of each variant that the macro `reasons!` defines."""
    return {part[0].text: (path, part[0]) for _, parts in rust.calls(code, ["reasons!"]) for part in parts}


def used_reasons(sources):
    """Place of a use of each reason: of each path `Reason::NAME`."""
    found = {}
    for path, code in sources.items():
        for index, token in enumerate(code):
            if token.text == "Reason" and code[index + 1].text == "::":
                found.setdefault(code[index + 2].text, (path, code[index + 2]))
    return found


def variables(sources, report):
    """Place of each variable of the environment: of each literal of that form."""
    found = {}
    for path, code in sources.items():
        for _, token in texts(code):
            if VARIABLE.fullmatch(token.text):
                found.setdefault(token.text, (path, token))
        for index, arguments in rust.calls(code, ("var", "var_os")):
            if any(token.kind not in ("string", "word") for token in arguments[0]):
                report(path, code[index], f"a variable that cannot be read off: {rust.shown(arguments[0])}")
    return found
