"""What the course needs of the machine, checked before it begins."""

import os
import shutil
from typing import Final

PROGRAMS: Final = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "nft": "nftables",
    "bird": "bird2",
    "birdc": "bird2",
    "ping": "iputils-ping",
    "curl": "curl",
    "conntrack": "conntrack",
}
"""The programs, and the Debian package of each."""


def missing() -> str:
    """What is missing, in words, or nothing."""
    if os.geteuid() != 0:
        return "root is needed: network namespaces, routes and packet filters are real (try sudo, or a user namespace)"
    packages = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    return f"not installed: {', '.join(packages)} (make packages, or apt-get install)" if packages else ""
