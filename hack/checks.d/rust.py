"""Reads Rust source as tokens, as far as the checks need it. Code of tests and of fuzzing is left out."""

import pathlib
import re
from typing import NamedTuple

TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<line_comment>//[^\n]*)
    | (?P<block_comment>/\*)
    | (?P<raw>b?r(?P<hashes>\#*)"(?P<raw_text>.*?)"(?P=hashes))
    | (?P<string>b?"(?P<text>(?:[^"\\]|\\.)*)")
    | (?P<char>b?'(?:[^'\\]|\\(?:u\{[^}]*\}|x[0-9a-fA-F]{2}|.))')
    | (?P<lifetime>'[A-Za-z_]\w*)
    | (?P<number>\d[\w]*(?:\.\d[\w]*)?)
    | (?P<word>(?:r\#)?[A-Za-z_]\w*)
    | (?P<mark>::|=>|->|==|!=|.)
    """,
    re.VERBOSE | re.DOTALL,
)
PAIRS = {"(": ")", "[": "]", "{": "}"}


class Token(NamedTuple):
    """A token: `kind` is string, char, lifetime, number, word or mark; a string's `text` is its value."""

    kind: str
    text: str
    line: int


def tokens(source):
    """The tokens of a source text."""
    found, at, line = [], 0, 1
    while at < len(source):
        match = TOKEN.match(source, at)
        kind, end = match.lastgroup, match.end()
        if match["block_comment"]:
            kind, depth = "space", 1
            while depth:
                part = re.compile(r"/\*|\*/").search(source, end)
                depth += 1 if part[0] == "/*" else -1
                end = part.end()
        if match["raw"]:
            found.append(Token("string", match["raw_text"], line))
        elif match["string"]:
            # A line that ends with a backslash continues at the next word.
            text = re.sub(r"\\\n\s*", "", match["text"])
            found.append(Token("string", re.sub(r'\\(["\\])', r"\1", text), line))
        else:
            for kind in ("char", "lifetime", "number", "word", "mark"):
                if match[kind]:
                    found.append(Token(kind, match[kind], line))
        line += source.count("\n", at, end)
        at = end
    return found


def closing(code, at):
    """Index of the token that closes the bracket at an index."""
    depth = 0
    for index in range(at, len(code)):
        if code[index].kind == "mark":
            depth += code[index].text in PAIRS
            depth -= code[index].text in PAIRS.values()
            if depth == 0:
                return index
    raise ValueError(f"line {code[at].line}: {code[at].text} is not closed")


def split(code, mark=","):
    """Parts of tokens between a mark that is outside of all brackets."""
    parts, depth, begin = [], 0, 0
    for index, token in enumerate(code):
        if token.kind != "mark":
            continue
        depth += token.text in PAIRS
        depth -= token.text in PAIRS.values()
        if token.text == mark and depth == 0:
            parts.append(code[begin:index])
            begin = index + 1
    return [part for part in (*parts, code[begin:]) if part]


def shown(code):
    """Tokens as text, for messages."""
    return "".join(f'"{token.text}"' if token.kind == "string" else token.text for token in code)


def calls(code, names):
    """(index, arguments) of each call of functions of these names, or of macros where a name ends with "!"."""
    for index, token in enumerate(code):
        mark = code[index + 1].text if index + 1 < len(code) and code[index + 1].text == "!" else ""
        begin = index + 1 + len(mark)
        if token.kind != "word" or token.text + mark not in names or begin >= len(code) or code[index - 1].text == "fn":
            continue
        if code[begin].text == "(" or (mark and code[begin].text in PAIRS):
            yield index, split(code[begin + 1 : closing(code, begin)])


def without_attributes(code):
    """Tokens without attributes."""
    kept, index = [], 0
    while index < len(code):
        after = [token.text for token in code[index + 1 : index + 3]]
        if code[index].text == "#" and after and (after[0] == "[" or after == ["!", "["]):
            index = closing(code, index + 1 + (after[0] == "!")) + 1
            continue
        kept.append(code[index])
        index += 1
    return kept


def is_test(attribute):
    """Whether the tokens of an attribute say that its item is not part of the binary that is shipped."""
    return bool(re.match(r'cfg\((?!not)(?:any\()?(?:test\b|feature="(?:fuzzing|fault-points|planted)")', shown(attribute)))


def without_tests(code):
    """Tokens without the items that only tests have, and the names of modules that only tests have."""
    kept, modules, at = [], set(), 0
    while at < len(code):
        if code[at].text == "#" and code[at + 1].text == "[":
            end = closing(code, at + 1)
            if is_test(code[at + 2 : end]):
                at = end + 1
                while code[at].text == "#":
                    at = closing(code, at + 1) + 1
                begin = at
                while code[at].text not in (";", "{"):
                    at = closing(code, at) + 1 if code[at].text in PAIRS else at + 1
                head = [token.text for token in code[begin:at]]
                if code[at].text == "{":
                    at = closing(code, at)
                elif "mod" in head:
                    modules.add(head[-1])
                at += 1
                continue
        kept.append(code[at])
        at += 1
    return kept, modules


def sources(folder):
    """Tokens of each file below a folder, by path, without what only tests have."""
    found, skipped = {}, set()
    for path in sorted(pathlib.Path(folder).rglob("*.rs")):
        code, modules = without_tests(tokens(path.read_text()))
        found[path] = code
        base = path.parent if path.name in ("mod.rs", "lib.rs", "main.rs") else path.with_suffix("")
        skipped |= {base / name for name in modules}
    return {
        path: code
        for path, code in found.items()
        if not any(path.with_suffix("") == module or module in path.parents for module in skipped)
    }
