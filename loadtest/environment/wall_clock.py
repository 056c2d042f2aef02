"""A wall clock for one service, which can be set while it runs; its monotonic clocks go on as they are.

That is libfaketime, which the service's processes load before the C library. A time namespace cannot do it: it moves
the monotonic clocks only.
"""

from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/usr/lib")
_LIBRARY: Final = "*/faketime/libfaketimeMT.so.1"
"""Of Debian's package libfaketime, below the folder of the architecture."""


def library() -> Path | None:
    """libfaketime, if it is installed."""
    return next(iter(sorted(_FOLDER.glob(_LIBRARY))), None)


class WallClock:
    """The clock of the processes that are started with its `environment`."""

    def __init__(self, file: Path, preloaded: Path) -> None:
        self._file = file
        self._preloaded = preloaded
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes need."""
        return {
            "LD_PRELOAD": str(self._preloaded),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # the file is read once a second
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else waits with a limit by the monotonic clock end at once: Python's for its own lock, over and over.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "FAKETIME_DISABLE_SHM": "1",  # what killed processes share would stay
        }

    def set(self, ahead_seconds: int) -> None:
        """From now on the clock is ahead of the machine's by this, or behind it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_seconds:+d}\n")
        new.replace(self._file)  # nobody reads half of it
