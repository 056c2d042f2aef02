"""Processes that a test starts and interrupts."""

import signal


def restore() -> None:
    """Runs in the new process. A test in the background of a shell would inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
