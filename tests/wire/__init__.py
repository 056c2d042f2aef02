"""Recorded bytes of Typha's protocol: made by Go's encoding/gob, the original's server and the original's client.

`manifest.json` lists every file and says what the folders hold.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
FILES = 343
"""Beside the manifest."""


def load(path: str) -> bytes:
    """A file's bytes."""
    return (FOLDER / path).read_bytes()


def load_json(path: str) -> Any:
    """A JSON file's value."""
    return json.loads(load(path))


def load_lines(path: str) -> list[dict[str, Any]]:
    """A JSON-lines file's values."""
    return [json.loads(line) for line in load(path).splitlines()]
