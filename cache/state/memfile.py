"""Files in memory (memfd) for other processes. Seals prevent readers from changing or shrinking them."""

import fcntl
import mmap
import os

_F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1. An existing writable mapping stays writable, and no new one can be made. The fcntl module names this seal
from Python 3.13 on."""
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


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
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        mapping = mmap.mmap(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, mapping


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
