"""Files in memory (memfd) whose descriptors go to other processes, sealed so that no reader can change or cut them."""

import fcntl
import mmap
import os

_F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1: who has mapped it writes on, nobody else ever can (the fcntl module names it from Python 3.13 on)."""
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def create_growing(name: str, size_bytes: int) -> tuple[int, mmap.mmap]:
    """A file of fixed size that only the returned mapping can write; pages take memory when first written.

    Returns:
        (file descriptor, writable mapping); both are the caller's to close.
    """
    return _create_sized(name, size_bytes, seals=_SIZE_SEALS | _F_SEAL_FUTURE_WRITE)


def create_shared(name: str, size_bytes: int) -> tuple[int, mmap.mmap]:
    """A small file of fixed size that everybody writes who has its descriptor.

    Returns:
        (file descriptor, writable mapping); both are the caller's to close.
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
    """A file to be written with `write_all` and then sealed by `seal`."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_all(descriptor: int, data: bytes) -> None:
    """Appends all of the bytes, in as many writes as the kernel wants."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def seal(descriptor: int) -> None:
    """Nobody writes, grows or cuts the file any more."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def map_readonly(descriptor: int, size_bytes: int) -> memoryview:
    """The file's bytes; the mapping goes when the last view of it does."""
    return memoryview(mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
