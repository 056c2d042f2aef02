"""Texts in YAML for tests: a table of scalars in all positions and of documents, and random texts.

The table stands in the golden file, with what the library of Kubernetes' tools makes of each text. After adding texts,
with any value, `python -m tests.harness.yaml_cases PROGRAM` records the values. tools/yamlref/build.sh prints PROGRAM.
"""

import base64
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from tests.harness.repository import ROOT

GOLDEN = ROOT / "tests" / "golden" / "yaml" / "table.json"

POSITIONS = ["%s", "a: %s", "%s: v", "? %s\n: v", "- %s", "[%s]", "{a: %s}", "x: {%s}", "z: &k %s\n*k : v"]

_SCALAR_CHARACTERS = "0123456789" * 2 + "+-_.eExXoObB:" * 2 + "yYnNtTfF~ aA"
_FLOW_CHARACTERS = "ab1:,?-[]{}#\"' .&*!|>%@=\n\t~x"
_FLOW_FORMS = [
    "[%s]",
    "{%s}",
    "{a: %s}",
    "k: [%s]\n",
    "- %s\n",
    "k: %s\n",
    "%s: v\n",
    "k:\n  %s\n",
    'k: "%s"\n',
    "k: |\n  %s\n",
]


def table() -> dict[str, dict[str, Any]]:
    """The golden file: `documents` has the JSON of a text or null for an error, `streams` all documents of a text."""
    content: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())
    return content


def random_documents(seed: int, count: int) -> Iterable[bytes]:
    """Parts of the table's texts, characters in flow style, scalars, and collections with anchors and merges."""
    choose = random.Random(seed)
    texts = [text for text in table()["documents"] if len(text) < 200]
    for number in range(count):
        kind = number % 4
        if kind == 0:
            text = "".join(_part(choose, text) for text in choose.choices(texts, k=choose.randint(1, 5)))
        elif kind == 1:
            characters = "".join(choose.choices(_FLOW_CHARACTERS, k=choose.randint(1, 8)))
            text = choose.choice(_FLOW_FORMS) % characters
        elif kind == 2:
            scalar = "".join(choose.choices(_SCALAR_CHARACTERS, k=choose.randint(1, 8)))
            text = choose.choice(POSITIONS) % scalar
        else:
            text = f"a: &a {{x: 1, z: 2}}\nb: &b {{z: 3}}\nc: &c [*a, *b]\nd: {_value(choose, 0)}\n"
        yield text.encode()


def _part(choose: random.Random, text: str) -> str:
    begin, end = sorted(choose.choices(range(len(text) + 1), k=2)) if choose.random() < 0.5 else (0, len(text))
    return text[begin:end] + choose.choice(("", "\n", " ", "\n  "))


def _value(choose: random.Random, depth: int) -> str:
    kind = choose.random()
    if kind < 0.25 or depth > 3:
        return choose.choice(["1", "x", "~", "yes", "'q'", "1.50", "0x1f", "[]", "{}", "<<"])
    if kind < 0.4:
        return "*" + choose.choice("abc")
    anchor = f"&{choose.choice('abc')} " if choose.random() < 0.4 else ""
    if kind < 0.6:
        return f"{anchor}[{', '.join(_value(choose, depth + 1) for _ in range(choose.randint(0, 3)))}]"
    names = ["a: ", "b: ", "1: ", "<<: ", "<<: ", "'<<': ", "!!merge <<: ", "? &a k : ", "*b : ", "*a : ", "&c yes: "]
    members = (choose.choice(names) + _value(choose, depth + 1) for _ in range(choose.randint(0, 4)))
    return f"{anchor}{{{', '.join(members)}}}"


def reference(program: str, mode: str, texts: Iterable[bytes]) -> list[dict[str, Any]]:
    """What the program in Go makes of each text: its `json` and, if there is one, its `error`."""
    lines = b"".join(json.dumps(base64.b64encode(text).decode()).encode() + b"\n" for text in texts)
    done = subprocess.run([program, mode], input=lines, stdout=subprocess.PIPE, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def comparable(text: str) -> Any:
    """JSON with its numbers as they are written, and the order of members."""

    def members(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return [("member", ""), *pairs]

    return json.loads(text, parse_int=_written, parse_float=_written, object_pairs_hook=members)


def _written(number: str) -> tuple[str, str]:
    return "number", number


def record(program: str) -> dict[str, dict[str, Any]]:
    """The golden file anew, with the same texts."""
    documents, streams = table()["documents"], table()["streams"]
    one = reference(program, "documents", [text.encode() for text in documents])
    many = reference(program, "streams", [text.encode() for text in streams])
    return {
        "documents": {
            text: each["json"][0] if each["json"] else None for text, each in zip(documents, one, strict=True)
        },
        "streams": {text: None if "error" in each else each["json"] for text, each in zip(streams, many, strict=True)},
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(sys.argv[1]), indent=0) + "\n")
