"""The first line of the log."""

import dataclasses
import subprocess
import sys
from typing import Any

from typha import settings
from typha.cli import serve
from typha.observability import logs
from typha.settings.machine import Machine

LOADED = settings.load(flags={}, environment={}, default_config_file="/nowhere")


def test_only_what_is_not_the_default_is_told() -> None:
    fields = serve._banner(LOADED, Machine(cpus=4, cpu_quota=1.5, memory_limit_bytes=1 << 28))
    assert fields.keys() == {"version", "commit", "python", "cpus", "cpu_quota", "memory_limit", "Workers"}
    assert (fields["cpus"], fields["cpu_quota"], fields["memory_limit"]) == (4, 1.5, 1 << 28)
    assert fields["Workers"] == "1 (CPUs)"


def test_settings_without_room_in_the_line_are_counted() -> None:
    texts: dict[str, Any] = {row.attribute: "x" for row in settings.SETTINGS if isinstance(row.default, str)}
    changed = dataclasses.replace(LOADED.settings, **texts, server_port=1, health_port=2, debug_port=3, workers=4)
    fields = serve._banner(LOADED._replace(settings=changed), Machine())
    told = [name for name in fields if name[0].isupper()]
    assert len(told) + fields["more_settings"] == len(texts) + 4
    assert len(fields) + 1 == logs.FIELDS_LIMIT  # with the destinations of the log


def test_closed_standard_descriptors_are_not_given_to_sockets() -> None:
    text = "import os; os.closerange(0, 2); from typha.cli import serve; serve.open_standard_descriptors()"
    text += "; import socket; os.write(2, str(socket.socket().fileno()).encode())"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, check=True)
    assert int(ended.stderr) > serve._STDERR
