"""Memory and open files of this process, as the kernel counts them."""

import os

_KIBIBYTE = 1024
_FIELDS = {"VmRSS": "resident_bytes", "VmHWM": "resident_bytes_max", "RssShmem": "shared_bytes"}


def of_process() -> dict[str, int]:
    """Resident memory in bytes, and open files, by name for a log line; without what the kernel does not say."""
    found: dict[str, int] = {}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in _FIELDS:
                    found[_FIELDS[name]] = int(value.split()[0]) * _KIBIBYTE
        found["open_files"] = len(os.listdir("/proc/self/fd"))
    except (OSError, ValueError, IndexError):
        pass
    return found
