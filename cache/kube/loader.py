"""Loads address and credentials of the API server, in a short-lived process.

What reads kubeconfig files, and runs credential plugins, costs memory that would stay; a separate process
(cache.kube.credentials) frees it when it ends, and a plugin can be killed with it. It runs again when the credentials
have expired, or when one of the files has changed.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import sys

import msgspec

from cache.kube import access, files, processes

_HELPER = (
    "import sys; sys.path.insert(0, sys.argv[1]); from cache.kube import credentials; sys.exit(credentials.main())"
)
"""Finds the sources without PYTHONPATH, which a credential plugin would inherit."""
_HELPER_TIMEOUT_SECONDS = 60.0
"""An exec plugin may call an identity provider over the network."""
_MAX_OUTPUT_BYTES = 8 * files.MAX_FILE_BYTES
"""As base64: authorities, a certificate with its chain and a key, each of the largest size."""
_READ_BYTES = 65_536
_MAX_ERROR_LENGTH = 600


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read to the end. Drop what is above the limit, but read it, so that the process does not wait."""
    output = bytearray()
    while chunk := await stream.read(_READ_BYTES):
        output += chunk[: max(0, _MAX_OUTPUT_BYTES + 1 - len(output))]
    return bytes(output)


async def load_access(*, timeout_seconds: float = _HELPER_TIMEOUT_SECONDS) -> access.Access:
    """Load from the environment and files (see cache.kube.credentials). Raises access.AccessError."""
    try:
        process = await processes.start(
            sys.executable,
            "-P",
            "-c",
            _HELPER,
            str(pathlib.Path(__file__).parents[2]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, MemoryError) as error:
        problem = error.strerror if isinstance(error, OSError) else "no memory"
        raise access.AccessError(f"the process that loads the credentials cannot be started: {problem}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    is_complete = False
    try:
        async with asyncio.timeout(timeout_seconds):
            output, errors = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            await process.wait()
        is_complete = True
    except TimeoutError:
        raise access.AccessError(f"loading the credentials took more than {timeout_seconds:g} s") from None
    finally:
        if not is_complete:
            # The whole session: an exec plugin must not outlive its helper.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await processes.wait_for_end(process)
    if process.returncode != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit status {process.returncode}"]
        *said, problem = [files.shown(line) for line in lines]
        # Before it, there is what a plugin has written.
        raise access.AccessError((f"{problem} ({said[-1]})" if said else problem)[:_MAX_ERROR_LENGTH])
    if len(output) > _MAX_OUTPUT_BYTES:
        raise access.AccessError(f"the credentials are larger than {_MAX_OUTPUT_BYTES} bytes")
    try:
        return msgspec.json.decode(output, type=access.Access)
    except msgspec.DecodeError as error:
        raise access.AccessError(f"the credentials cannot be read: {error}") from error
