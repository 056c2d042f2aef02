"""Forgets connections of addresses that no longer belong to a workload.

Established connections pass without asking a policy. So a new workload with the address of an old one would inherit
them.
"""

import asyncio
import shutil
from collections.abc import Iterable, Sequence

RUN_TIMEOUT_SECONDS = 10.0
ADDRESSES_AT_ONCE = 16
"""Processes that run side by side; more than one address at a time is rare."""

_FOUND_NOTHING = b"0 flow entries have been deleted"


class Conntrack:
    """Runs `conntrack` in the network namespace of this process."""

    def __init__(self, command: Sequence[str] = ("conntrack",)) -> None:
        self._command = tuple(command)

    @property
    def installed(self) -> bool:
        """Whether the program is there."""
        return shutil.which(self._command[0]) is not None

    async def forget(self, addresses: Iterable[str]) -> list[str]:
        """Ends the connections that addresses of IPv4 began or answered. Returns what failed."""
        runs = [(side, address) for address in sorted(addresses) for side in ("--orig-src", "--reply-src")]
        failures: list[str] = []
        for start in range(0, len(runs), ADDRESSES_AT_ONCE):
            batch = runs[start : start + ADDRESSES_AT_ONCE]
            failures += filter(None, await asyncio.gather(*(self._delete(*arguments) for arguments in batch)))
        return failures

    async def _delete(self, side: str, address: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *("-D", "-f", "ipv4", side, address),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return str(error)
        try:
            async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
                _, errors = await process.communicate()
        except TimeoutError:
            return f"{address}: no answer within {RUN_TIMEOUT_SECONDS:g} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0 or _FOUND_NOTHING in errors:
            return ""
        return f"{address}: {errors.decode(errors='replace').strip()[:200]}"
