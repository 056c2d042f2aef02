"""The `felix` feed of some objects, without a cluster: `typha convert` makes it, as a process of its own.

So the agent imports nothing of the service. Only commands for people and for tests need this.
"""

import base64
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_COMMAND = "typha"
_CONVERT = ("convert", "--feed", "felix")


class ConversionFailed(Exception):
    """`typha convert` cannot be started, or cannot read its input. The message says why."""


class KeyValue(NamedTuple):
    """A key of the feed and its new value; None if it is gone."""

    key: str
    value: bytes | None


def convert_steps(objects: Iterable[object], events: Iterable[object] = ()) -> dict[int, list[KeyValue]]:
    """The changes that some objects make, as step 0, and then those of each watch event, numbered from 1.

    Raises:
        ConversionFailed: it did not work.
    """
    lines = "\n".join(json.dumps(document) for document in (*objects, *events))
    steps: dict[int, list[KeyValue]] = {}
    for line in _run([*_CONVERT, "--deltas"], lines.encode()):
        steps.setdefault(line["step"], []).append(_key_value(line))
    return steps


def convert_files(files: Iterable[str]) -> list[KeyValue]:
    """The feed of the objects in some files, as JSON or YAML.

    Raises:
        ConversionFailed: it did not work.
    """
    return [_key_value(line) for line in _run([*_CONVERT, *files], b"")]


def parse_dump(text: bytes) -> Iterator[KeyValue]:
    """The feed in the lines that `typha convert` and `typha watch --json` print.

    Raises:
        ValueError: a line is not one of them.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not (isinstance(entry, dict) and entry.keys() == {"status"}):  # as `typha watch` tells of the feed
                yield _key_value(entry)
        except ValueError as error:
            raise ValueError(f"line {number} of the dump: {error}") from error


def _key_value(line: Any) -> KeyValue:
    if not isinstance(line, dict) or not isinstance(line.get("key"), str):
        raise ValueError("not a line with a key")
    if "value_base64" in line:  # a value that is no text
        return KeyValue(line["key"], base64.b64decode(line["value_base64"]))
    value = line.get("value")
    return KeyValue(line["key"], None if value is None else str(value).encode())


def _run(arguments: list[str], standard_input: bytes) -> list[dict[str, Any]]:
    beside = pathlib.Path(sys.executable).with_name(_COMMAND)
    command = str(beside) if beside.exists() else _COMMAND
    try:
        done = subprocess.run([command, *arguments], input=standard_input, capture_output=True, check=False)
    except OSError as error:
        raise ConversionFailed(f"{command}: {error.strerror}") from error
    # Exit code 1 means that an object was refused, which the feed's agents would not see either.
    if done.returncode > 1:
        raise ConversionFailed(done.stderr.decode(errors="replace").strip())
    return [json.loads(line) for line in done.stdout.splitlines()]
