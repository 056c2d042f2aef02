"""Files in memory (memfd) for other processes. Seals prevent readers from changing or shrinking them.

A message that waits to be sent keeps the files that go with it open: `hold` delays `close` until `release`. Duplicates
would do the same, but they need descriptors, and a process may be out of them.
"""

import fcntl
import mmap
import os

_F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1. An existing writable mapping stays writable, and no new one can be made. The fcntl module names this seal
from Python 3.13 on."""
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

_holds: dict[int, int] = {}
"""Number of holds on each descriptor of this process."""
_closed_while_held: set[int] = set()


def create_growing(name: str, size_bytes: int) -> tuple[int, mmap.mmap]:
    """Create a file of fixed size that only the returned mapping can write. Pages take memory when first written.

    Returns:
        (file descriptor, writable mapping). The caller closes both.
    """
    return _create_sized(name, size_bytes, seals=_SIZE_SEALS | _F_SEAL_FUTURE_WRITE)


def create_shared(name: str, size_bytes: int) -> tuple[int, mmap.mmap]:
    """Create a small file of fixed size that every process with its descriptor can write.

    Returns:
        (file descriptor, writable mapping). The caller closes both.
    """
    return _create_sized(name, size_bytes, seals=_SIZE_SEALS)


def _create_sized(name: str, size_bytes: int, *, seals: int) -> tuple[int, mmap.mmap]:
    descriptor = create_empty(name)
    try:
        os.ftruncate(descriptor, size_bytes)
        mapping = mmap.mmap(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, mapping


def hold(descriptor: int) -> None:
    """Keep a descriptor open until `release`, whatever its owner does."""
    _holds[descriptor] = _holds.get(descriptor, 0) + 1


def release(descriptor: int) -> None:
    """End one `hold`. Close the descriptor if that was the last one and its owner has closed it."""
    _holds[descriptor] -= 1
    if not _holds[descriptor]:
        del _holds[descriptor]
        if descriptor in _closed_while_held:
            _closed_while_held.remove(descriptor)
            os.close(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor for its owner: now, or at the end of the last `hold`."""
    if descriptor in _holds:
        _closed_while_held.add(descriptor)
    else:
        os.close(descriptor)


def create_empty(name: str) -> int:
    """Create a file to write with `write_all` and then seal with `seal`."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_all(descriptor: int, data: bytes) -> None:
    """Append all bytes, in as many writes as the kernel needs."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def seal(descriptor: int) -> None:
    """Make the file read-only for every process, and its size fixed."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def map_readonly(descriptor: int, size_bytes: int) -> memoryview:
    """Map the file and return its bytes. The mapping ends with its last view."""
    return memoryview(mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
