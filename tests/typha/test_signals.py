"""Signals at any moment of a process's life."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.worker_stand import eventually
from typha import signals

ALL = (*signals.HARMLESS, *signals.ENDING)


def program(text: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own."""
    setup = "import os, signal, sys\nfrom typha import signals\n"
    return subprocess.run(
        [sys.executable, "-c", setup + text], capture_output=True, text=True, timeout=180, check=False
    )


@pytest.fixture
def _restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)


@pytest.mark.parametrize("name", [number.name for number in (*signals.HARMLESS, *signals.STRAY)])
def test_before_the_service_serves_harmless_signals_do_nothing(name: str) -> None:
    result = program(f"signals.ignore_early(); os.kill(os.getpid(), signal.{name}); print('alive')")
    assert (result.returncode, result.stdout) == (0, "alive\n")


def test_before_the_service_serves_sigterm_ends_it_well() -> None:
    result = program("signals.ignore_early(); os.kill(os.getpid(), signal.SIGTERM); print('alive')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_worker_ignores_all_also_those_that_came_before() -> None:
    result = program(
        "signal.pthread_sigmask(signal.SIG_BLOCK, signals.HARMLESS + signals.ENDING)\n"
        "for number in signals.HARMLESS + signals.ENDING: os.kill(os.getpid(), number)\n"
        "signals.leave_to_hub()\n"
        "for number in signals.HARMLESS + signals.ENDING + signals.STRAY: os.kill(os.getpid(), number)\n"
        "print('alive', signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    assert (result.returncode, result.stdout) == (0, "alive set()\n")


@pytest.mark.usefixtures("_restored")
async def test_signals_call_their_actions_in_the_loop_and_are_ignored_afterwards() -> None:
    heard: list[str] = []
    actions = {signal.SIGUSR1: lambda: heard.append("usr1"), signal.SIGTERM: lambda: heard.append("term")}
    with signals.handled(asyncio.get_running_loop(), actions):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: len(heard) == 2)
    for number in actions:
        os.kill(os.getpid(), number)
    await asyncio.sleep(0)
    assert sorted(heard) == ["term", "usr1"]


def test_a_signal_after_the_end_of_the_loop_does_nothing() -> None:
    result = program(
        "import asyncio\n"
        "async def run(): return signals.handled(asyncio.get_running_loop(), {signal.SIGTERM: lambda: print('x')})\n"
        "context = asyncio.run(run())\n"
        "with context: os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('alive')"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


@pytest.mark.usefixtures("_restored")
def test_a_process_that_is_being_started_survives_signals() -> None:
    deferral = signals.Deferral()
    with deferral.active():
        with deferral.active():
            pass
        child = subprocess.Popen(["sleep", "60"])
    try:
        for number in ALL:
            child.send_signal(number)
        with open(f"/proc/{child.pid}/status", encoding="ascii") as file:
            status = dict(line.split(":\t", 1) for line in file)
        pending = int(status["ShdPnd"], 16)
        assert all(pending >> (number - 1) & 1 for number in ALL)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
