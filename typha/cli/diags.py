"""`typha diags`: one archive that says how a running service does, for support. It holds no secret."""

import dataclasses
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import IO

import click
import msgspec

from typha.admin import answers, client
from typha.cli import version, watch_output
from typha.settings import machine

EXIT_FAILED = 1
_PART_BYTES_MAX = 16 * 1024 * 1024
_SECONDS_MAX = 60.0
"""Parts that would begin later are left out, and named."""
_CLIENTS_MAX = 10_000
_PROCESS_FILES = ("status", "limits", "smaps_rollup", "schedstat", "wchan", "cgroup", "oom_score")
"""Of /proc. Neither `environ` nor `cmdline`: they may hold secrets."""
_FILE_MODE = 0o600
_README = """\
What a running Typha says of itself. See "typha diags" in docs/operations.md.

status.json, clients.json   as `typha status --json` has them
settings.json               every setting, its value and source; secrets are redacted
metrics.txt, health.txt     the pages
hub.txt, worker-N.txt       memory, tasks, threads and the newest log lines of each process
processes/                  what the kernel says of each process
errors.txt                  what is missing, and why

Not in here: keys and values of the feeds, tokens, private keys, environment variables of other programs.
"""

Part = tuple[str, bytes]


@click.command(name="diags", short_help="Write an archive that says how a running service does.")
@click.option("-o", "--output", default="-", show_default=True, metavar="FILE", help="Path; - is standard output.")
@click.option("--server", default="", metavar="PATH", help="Admin socket. Default: the service on this host.")
def diags(*, output: str, server: str) -> int:
    """Write a .tar.gz with status, clients, settings, metrics, stacks and the newest log lines.

    By kubectl: kubectl exec POD -- typha diags > typha.tar.gz
    """
    if output == "-" and sys.stdout.isatty():
        raise click.UsageError("the archive is no text: give -o FILE, or redirect standard output")
    try:
        service = client.Service(server)
    except client.Unanswered as error:
        click.echo(watch_output.printable(f"typha diags: error: {error}"), err=True)
        return EXIT_FAILED
    failures: list[str] = []
    if output == "-":
        write(sys.stdout.buffer, service, failures)
        sys.stdout.flush()
    else:
        # A file that exists keeps its mode, so it must not: the archive names nodes and addresses.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
        with open(descriptor, "wb") as file:
            write(file, service, failures)
    for failure in failures:
        click.echo(watch_output.printable(f"typha diags: missing: {failure}"), err=True)
    return 0


def write(file: IO[bytes], service: client.Service, failures: list[str]) -> None:
    """Write the archive. What cannot be had is named in `failures`, and in the archive."""
    deadline = time.monotonic() + _SECONDS_MAX
    now = int(time.time())
    folder = f"typha-diags-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}"
    with tarfile.open(fileobj=file, mode="w|gz") as archive:

        def add(name: str, content: bytes) -> None:
            if len(content) > _PART_BYTES_MAX:
                failures.append(f"the end of {name}, which has {len(content)} bytes")
                content = content[:_PART_BYTES_MAX]
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mtime, member.mode = len(content), now, _FILE_MODE
            archive.addfile(member, io.BytesIO(content))

        for make in _MAKERS:
            if time.monotonic() > deadline:
                failures.append(f"{make.__name__.strip('_')}: {_SECONDS_MAX:g} s have passed")
                continue
            try:
                for name, content in make(service):
                    add(name, content)
            except (client.Unanswered, client.Changed, msgspec.ValidationError, OSError) as error:
                failures.append(f"{make.__name__.strip('_')}: {error}")
        add("errors.txt", "".join(f"{failure}\n" for failure in failures).encode(errors="replace"))


def _local(_service: client.Service) -> Iterator[Part]:
    yield "README.txt", _README.encode()
    yield "version.txt", f"{version.text()}\nPython:       {sys.version}\n".encode()
    yield "machine.json", _json(dataclasses.asdict(machine.read()))


def _status(service: client.Service) -> Iterator[Part]:
    yield "status.json", _json(service.get("/v1/status"))


def _clients(service: client.Service) -> Iterator[Part]:
    yield "clients.json", _json(service.get("/v1/clients", sort="lag", limit=_CLIENTS_MAX))


def _support(service: client.Service) -> Iterator[Part]:
    found = msgspec.convert(service.get("/v1/support"), answers.Support)
    yield "settings.json", _json(found.settings)
    yield "metrics.txt", found.metrics.encode()
    yield "health.txt", "\n".join(found.health).encode()
    lines = "\n".join(found.log)
    yield "hub.txt", f"{found.stacks}\n\n{lines}\n".encode()
    for worker in found.workers:
        yield f"worker-{worker.worker}.txt", worker.text.encode()
    missing = "".join(f"worker {number} did not answer in time\n" for number in found.missing_workers)
    if missing:
        yield "workers-missing.txt", missing.encode()
    for pid in sorted({found.pid, *(worker.pid for worker in found.workers), *_children(found.pid)} - {0}):
        for name in _PROCESS_FILES:
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    content = file.read(_PART_BYTES_MAX)
            except OSError as error:
                content = f"{error}\n".encode()
            yield f"processes/{pid}/{name}", content


def _children(pid: int) -> list[int]:
    """Processes that this one has started: also a worker that does not answer."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(number) for number in file.read().split()]
    except (OSError, ValueError):
        return []


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode()


_MAKERS: tuple[Callable[[client.Service], Iterator[Part]], ...] = (_local, _status, _clients, _support)
