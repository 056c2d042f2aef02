"""Signals to a process of the service: none of them ends it by accident, at whatever moment it comes.

The event loops' own handlers are not enough: before them and after them a signal has its default effect.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGINT)
STRAY = (
    *(signal.SIGQUIT, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
"""Nobody sends them on purpose, and by default they end or stop a process."""
_ALL = (*HARMLESS, *ENDING)


def ignore_early() -> None:
    """From here on only SIGTERM ends a service that does not serve yet, and the signals above do nothing.

    Without a handler, the kernel hides SIGTERM from the first process of a container, which would then go on starting.
    """
    for number in HARMLESS:
        signal.signal(number, signal.SIG_IGN)
    for number in STRAY:
        signal.signal(number, _do_nothing)
    signal.signal(signal.SIGTERM, _end_early)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Unlike an ignored signal, this is not inherited: plugins for credentials may need their alarms."""


def _end_early(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def leave_to_hub() -> None:
    """A worker ignores signals: one to the whole process group is for the hub, which tells the workers what to do."""
    for number in (*_ALL, *STRAY):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)


@contextlib.contextmanager
def handled(loop: "asyncio.AbstractEventLoop", actions: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """While this lasts, each signal calls its action in the loop. Afterwards it does nothing: the process ends."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(actions[signal.Signals(number)])

    for number in actions:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in actions:
            signal.signal(number, signal.SIG_IGN)


class Deferral:
    """Signals wait while processes are started, so that these begin with the signals blocked.

    A signal to the whole process group would end a process that has not said what it does with it. It waits for
    `leave_to_hub` there.
    """

    def __init__(self) -> None:
        self._depth = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """May overlap with other uses."""
        self._depth += 1
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)
