"""States of the `bgp` feed for tests, and BIRD's own opinion of a configuration."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from clients.agents.bgp.resources import State

RESOURCES = "/calico/resources/v3/projectcalico.org/"


def put(state: State, key: str, value: Any) -> None:
    """Set a key."""
    state.apply(key, json.dumps(value).encode())


def put_node(state: State, number: int, *, labels: dict[str, str] | None = None, subnet: int = 1, **bgp: Any) -> None:
    """Node node-NUMBER with the address 172.30.SUBNET.1NUMBER."""
    name = f"node-{number}"
    spec = {"bgp": {"ipv4Address": f"172.30.{subnet}.{10 + number}/24", **bgp}}
    put(state, f"{RESOURCES}nodes/{name}", {"metadata": {"name": name, "labels": labels or {}}, "spec": spec})


def put_resource(state: State, kind: str, name: str, **spec: Any) -> None:
    """A BGPConfiguration, BGPPeer or BGPFilter by its plural."""
    put(state, f"{RESOURCES}{kind}/{name}", {"metadata": {"name": name}, "spec": spec})


def put_pool(state: State, cidr: str, **value: Any) -> None:
    """An IPPool."""
    put(state, f"/calico/v1/ipam/v4/pool/{cidr.replace('/', '-')}", {"cidr": cidr, **value})


def put_block(state: State, node: str, cidr: str, *, is_confirmed: bool = True) -> None:
    """A BlockAffinity."""
    key = f"/calico/ipam/v2/host/{node}/ipv4/block/{cidr.replace('/', '-')}"
    put(state, key, {"state": "confirmed" if is_confirmed else "pending"})


def opinion(text: str, folder: Path) -> str:
    """What `bird -p` says; nothing if it accepts the configuration or is not installed."""
    if shutil.which("bird") is None:
        return ""
    path = folder / "bird.conf"
    path.write_text(text)
    return subprocess.run(["bird", "-p", "-c", path], check=False, capture_output=True, text=True).stderr
