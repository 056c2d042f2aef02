"""Which build this is."""

import importlib.metadata
import os

VERSION = f"v{importlib.metadata.version('typha')}"
_COMMIT_CHARS_MAX = 64


def commit() -> str:
    """The Git commit of the build; the image's environment has it."""
    return os.environ.get("GIT_COMMIT", "unknown")[:_COMMIT_CHARS_MAX]
