"""An audit of IPAM: addresses that no pod has, and handles and affinities that no block knows. Pure."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from clients.agents.cni import ipam, records
from clients.agents.cni.plugin import POD_IPS
from clients.agents.cni.records import Block, JsonObject

YOUNG_SECONDS: Final = 60.0
"""An address that was given out so recently may belong to a pod whose ADD has not written its annotations yet."""


class Leak(NamedTuple):
    """Something that nobody uses."""

    subject: str
    """An address, or the name of an object."""
    handle: str
    """Release this handle to mend it; nothing if that does not help."""
    reason: str


def read(now_seconds: float, pods: Iterable[JsonObject]) -> ipam.Steps[list[Leak]]:
    """Compare all objects of IPAM with the pods. Read the pods after calling this, or a new pod looks like a leak."""
    blocks = [Block.parse(value) for value in (yield ipam.List("ipamblocks", {})) if not records.is_deleted(value)]
    handles = [value for value in (yield ipam.List("ipamhandles", {})) if not records.is_deleted(value)]
    affinities = [value for value in (yield ipam.List("blockaffinities", {})) if not records.is_deleted(value)]
    return find(blocks, handles, affinities, list(pods), now_seconds=now_seconds)


def find(
    blocks: list[Block],
    handles: list[JsonObject],
    affinities: list[JsonObject],
    pods: list[JsonObject],
    *,
    now_seconds: float,
) -> list[Leak]:
    """What is wrong, addresses first."""
    found = []
    held = {_identity(pod): _addresses(pod) for pod in pods}
    used_handles = set()
    for block in blocks:
        for used in block.used:
            used_handles.add(used.handle)
            if used.released_at or "pod" not in used.owner:
                continue  # it cools down, or belongs to a tunnel
            owner = (used.owner.get("namespace", ""), used.owner["pod"])
            age_seconds = now_seconds - records.parse_time(used.owner.get("timestamp", "").replace(" ", "T", 1))
            if used.address not in held.get(owner, ()) and age_seconds > YOUNG_SECONDS:
                state = "has another address" if owner in held else "does not exist"
                found.append(Leak(used.address, used.handle, f"pod {'/'.join(owner)} {state}"))
    for value in handles:
        age_seconds = now_seconds - records.parse_time(value["metadata"].get("creationTimestamp", ""))
        if value["spec"]["handleID"] not in used_handles and age_seconds > ipam.ORPHAN_AFTER_SECONDS:
            found.append(Leak(value["metadata"]["name"], value["spec"]["handleID"], "the handle has no address"))
    owners = {block.cidr: block.node for block in blocks}
    for value in affinities:
        spec = value["spec"]
        if owners.get(spec["cidr"]) != spec["node"] and spec["state"] == records.CONFIRMED:
            found.append(Leak(value["metadata"]["name"], "", "the affinity's block is gone, or another node's"))
    return found


def _identity(pod: JsonObject) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _addresses(pod: JsonObject) -> set[str]:
    annotated = (pod["metadata"].get("annotations") or {}).get(POD_IPS, "")
    return {address.partition("/")[0] for address in annotated.split(",") if address}
