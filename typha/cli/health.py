"""`calico health`: asks a component's health endpoint, for probes that run a command. Flags and exit codes are the
original's: 0 for a status from 200 to 399, 1 for everything else, with one line on standard error."""

import http.client
import re
import signal
from types import FrameType

import click

EXIT_UNHEALTHY = 1

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"([+-]?)(0|(?:{_PART})+)")
_TYPES = ("readiness", "liveness")


class _Duration(click.ParamType[float]):
    """A duration as Go writes it, such as 5s, 1m30s or 500ms, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration, such as 5s or 500ms", param, ctx)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, found[2]))
        return -seconds if found[1] == "-" else seconds


class _BadUsage(click.UsageError):
    exit_code = EXIT_UNHEALTHY


class _Command(click.Command):
    """A usage error ends the original with 1, too."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _BadUsage(error.format_message(), error.ctx) from error


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("timed out")


def _ask(host: str, port: int, path: str, timeout_seconds: float) -> int:
    """The status of the answer. Raises OSError, HTTPException or ValueError for none; TimeoutError after the time."""
    if timeout_seconds:  # for everything together: names, connection, answer; a peer that drips does not extend it
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, max(timeout_seconds, 1e-6))
    connection = http.client.HTTPConnection(host.removeprefix("[").removesuffix("]"), port)
    connection.request("GET", path)
    return connection.getresponse().status


@click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="localhost", show_default=True, help="Host to ask.")
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="Port of the health endpoints.")
@click.option("--type", "check", default="readiness", show_default=True, help="readiness or liveness.")
@click.option("--timeout", type=_Duration(), default="5s", show_default=True, help="Time for the answer; 0 = no limit.")
def health(host: str, port: int, check: str, timeout: float) -> int:
    """Ask a component's health endpoint; exit with 0 if it is well, and with 1 otherwise."""
    if check not in _TYPES:
        click.echo(f"Invalid check type {check!r}, expected readiness or liveness", err=True)
        return EXIT_UNHEALTHY
    try:
        status = _ask(host, port, f"/{check}", timeout)
    except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:
        click.echo(f"Health check failed: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        return EXIT_UNHEALTHY
    if 200 <= status < 400:
        return 0
    click.echo(f"Health check failed with status code: {status}", err=True)
    return EXIT_UNHEALTHY
