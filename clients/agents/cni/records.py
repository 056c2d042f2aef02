"""IPAM's objects as Calico writes them: names, contents, and the changes of one block. Pure.

What is read from the API server is checked (`Block.parse`): a block that contradicts itself is `Malformed`, and nobody
allocates from it.
"""

import base64
import calendar
import hashlib
import ipaddress
import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

JsonObject = dict[str, Any]

GROUP_VERSION: Final = "crd.projectcalico.org/v1"
MAX_BLOCK_ADDRESSES: Final = 4096
"""Calico's largest IPv4 block is a /20."""
MAX_NAME_LENGTH: Final = 253
"""Longest name of an object in Kubernetes."""
CONFIRMED: Final = "confirmed"
PENDING: Final = "pending"
PENDING_DELETION: Final = "pendingDeletion"
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)")
_KINDS: Final = {"ipamblocks": "IPAMBlock", "blockaffinities": "BlockAffinity", "ipamhandles": "IPAMHandle"}


class Malformed(Exception):
    """An object of the API server contradicts itself."""


class Attributes(NamedTuple):
    """Who has an address, as a block says it."""

    handle: str
    owner: dict[str, str]

    def record(self) -> JsonObject:
        """The attribute as in a block."""
        return {"handle_id": self.handle, "secondary": self.owner}


def pod_attributes(handle: str, *, node: str, namespace: str, pod: str, now_seconds: float) -> Attributes:
    """What Calico writes for a pod's address."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(now_seconds))
    return Attributes(handle, {"namespace": namespace, "node": node, "pod": pod, "timestamp": stamp})


def tunnel_attributes(node: str) -> Attributes:
    """What Calico writes for the address of a node's VXLAN device."""
    return Attributes(f"vxlan-tunnel-addr-{node}", {"node": node, "type": "vxlanTunnelAddress"})


class Allocation(NamedTuple):
    """One used address of a block."""

    address: str
    handle: str
    owner: dict[str, str]
    released_at: str


def cidr_name(cidr: str) -> str:
    """The name of a block's object: 10.0.0.0/26 becomes 10-0-0-0-26."""
    return re.sub(r"[.:/]", "-", cidr)


def affinity_name(node: str, cidr: str) -> str:
    """The name of a BlockAffinity; a long one is cut, and made unique by a digest."""
    name = f"{node}-{cidr_name(cidr)}"
    if len(name) < MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(f"{node}+{cidr_name(cidr)}".encode()).hexdigest()[:11]
    return f"{node[: MAX_NAME_LENGTH - 1 - len(cidr_name(cidr)) - 13]}-{cidr_name(cidr)}-{digest}"


def affinity_labels(node: str, *, version: int = 4) -> dict[str, str]:
    """Labels by which the affinities of one node are listed; node names can be longer than labels."""
    digest = base64.b32encode(hashlib.sha3_256(node.encode()).digest()).decode().rstrip("=")
    return {
        "projectcalico.org/affinity-type": "host",
        "projectcalico.org/hostname-hash": digest,
        "projectcalico.org/ip-version": str(version),
    }


def is_name(text: str) -> bool:
    """Whether Kubernetes allows it as the name of an object."""
    return len(text) <= MAX_NAME_LENGTH and _OBJECT_NAME.fullmatch(text) is not None


def handle_name(handle: str) -> str:
    """The name of an IPAMHandle. Raises ValueError if Kubernetes does not allow it as a name."""
    name = handle.lower()
    if not is_name(name):
        raise ValueError(f"{handle[:60]!r} cannot be the name of an IPAMHandle")
    return name


def format_time(seconds: float) -> str:
    """A time of Unix as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def parse_time(text: str) -> float:
    """The time of Unix that a Kubernetes time means, in whole seconds; 0 for what is none."""
    parts = _TIME.match(text)
    return calendar.timegm((*map(int, parts.groups()), 0, 0, 0)) if parts else 0.0


def new_handle(handle: str, cidr: str) -> JsonObject:
    """The IPAMHandle of an attachment with one address."""
    return _new("ipamhandles", handle_name(handle), {"handleID": handle, "block": {cidr: 1}, "deleted": False})


def new_affinity(node: str, cidr: str) -> JsonObject:
    """The claim of a node on a block, which still is to be confirmed."""
    made = _new(
        "blockaffinities",
        affinity_name(node, cidr),
        {"state": PENDING, "node": node, "type": "host", "cidr": cidr, "deleted": "false"},
    )
    made["metadata"]["labels"] = affinity_labels(node)
    return made


def is_deleted(value: JsonObject) -> bool:
    """Whether an object only waits for its deletion. BlockAffinity has the word, the other kinds the boolean."""
    return value["spec"].get("deleted") in (True, "true")


def as_deleted(value: JsonObject) -> JsonObject:
    """The object with the mark that makes readers take it as absent."""
    is_text = value.get("kind") == "BlockAffinity"
    return {**value, "spec": {**value["spec"], "deleted": "true" if is_text else True}}


class Block:
    """An IPAMBlock. The changing methods change this copy only; `record` makes the object of it."""

    __slots__ = (
        "_spec",
        "_value",
        "affinity",
        "allocations",
        "attributes",
        "cidr",
        "network",
        "sequence",
        "unallocated",
    )

    def __init__(self, value: JsonObject) -> None:
        """Use `parse` or `new`."""
        self._value = value
        self._spec: JsonObject = dict(value["spec"])
        self.cidr: str = self._spec["cidr"]
        self.network = ipaddress.IPv4Network(self.cidr)
        self.affinity: str = self._spec.get("affinity") or ""
        self.allocations: list[int | None] = list(self._spec["allocations"])
        """For each ordinal the index of its attributes, or None."""
        self.unallocated: list[int] = list(self._spec["unallocated"])
        """Free ordinals, the one that has been free for longest first: addresses are reused as late as possible."""
        self.attributes: list[JsonObject] = list(self._spec["attributes"])
        self.sequence: int = self._spec.get("sequenceNumber", 0)

    @classmethod
    def new(cls, cidr: str, node: str, *, now_ns: int, claimed_at: str) -> "Block":
        """A block without allocations. Its sequence begins at the time: no earlier block of this CIDR had it."""
        size = ipaddress.IPv4Network(cidr).num_addresses
        spec = {
            "cidr": cidr,
            "affinity": f"host:{node}",
            "affinityClaimTime": claimed_at,
            "allocations": [None] * size,
            "unallocated": list(range(size)),
            "attributes": [],
            "sequenceNumber": now_ns,
            "sequenceNumberForAllocation": {},
            "deleted": False,
            "strictAffinity": False,
        }
        return cls(_new("ipamblocks", cidr_name(cidr), spec))

    @classmethod
    def parse(cls, value: JsonObject) -> "Block":
        """A block that the API server has. Raises Malformed."""
        try:
            block = cls(value)
            block._check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Malformed(f"block {str(value.get('metadata', {}).get('name'))[:60]}: {error!r}") from error
        return block

    @property
    def node(self) -> str:
        """The node that the block belongs to, or nothing."""
        kind, _, name = self.affinity.partition(":")
        return name if kind == "host" else ""

    @property
    def claimed_at(self) -> str:
        """When the node claimed it, or nothing."""
        return str(self._spec.get("affinityClaimTime") or "")

    @property
    def is_empty(self) -> bool:
        """Whether no address is used."""
        return all(index is None for index in self.allocations)

    @property
    def used(self) -> list[Allocation]:
        """The used addresses, in order."""
        return [
            Allocation(
                str(self.network[ordinal]),
                self.attributes[index].get("handle_id") or "",
                self.attributes[index].get("secondary") or {},
                self.attributes[index].get("releasedAt") or "",
            )
            for ordinal, index in enumerate(self.allocations)
            if index is not None
        ]

    def free(self, reserved: "Reservations") -> int:
        """Number of addresses that can be given out."""
        if not reserved.networks:
            return len(self.unallocated)
        return sum(not reserved.has(self.network[ordinal]) for ordinal in self.unallocated)

    def allocate(self, attributes: Attributes, reserved: "Reservations") -> str:
        """Give out the address that has been free for longest; returns it, or nothing if the block has none."""
        ordinal = next((one for one in self.unallocated if not reserved.has(self.network[one])), None)
        if ordinal is None:
            return ""
        self.unallocated.remove(ordinal)
        record = attributes.record()
        if record not in self.attributes:
            self.attributes.append(record)
        self.allocations[ordinal] = self.attributes.index(record)
        self._sequences()[str(ordinal)] = self.sequence
        return str(self.network[ordinal])

    def release(self, handle: str) -> list[str]:
        """Free the addresses of a handle; returns them."""
        return self._free(lambda index: self.attributes[index].get("handle_id") == handle)

    def end_cooldowns(self, now_seconds: float, *, cooldown_seconds: float) -> None:
        """Free what was released at least this long ago: Calico can keep released addresses for a while."""
        ended = {
            index
            for index, record in enumerate(self.attributes)
            if record.get("releasedAt") and now_seconds - parse_time(record["releasedAt"]) >= cooldown_seconds
        }
        self._free(lambda index: index in ended)

    def disown(self) -> None:
        """Take the block from its node; its addresses stay in use."""
        self.affinity = ""
        self._spec.pop("affinity", None)
        self._spec.pop("affinityClaimTime", None)

    def record(self) -> JsonObject:
        """The object to write. Each write of a known block counts its sequence up."""
        spec = {
            **self._spec,
            "allocations": self.allocations,
            "unallocated": self.unallocated,
            "attributes": self.attributes,
            "sequenceNumber": self.sequence + (1 if self._is_known else 0),
        }
        return {**self._value, "spec": spec}

    @property
    def _is_known(self) -> bool:
        return "resourceVersion" in self._value["metadata"]

    def _sequences(self) -> dict[str, int]:
        sequences = self._spec["sequenceNumberForAllocation"] = dict(
            self._spec.get("sequenceNumberForAllocation") or {}
        )
        return sequences

    def _free(self, is_wanted: Callable[[int], bool]) -> list[str]:
        """Free the ordinals whose attributes have such an index; returns their addresses."""
        ordinals = [ordinal for ordinal, index in enumerate(self.allocations) if index is not None and is_wanted(index)]
        for ordinal in ordinals:
            self.allocations[ordinal] = None
            self.unallocated.append(ordinal)
            self._sequences().pop(str(ordinal), None)
        if ordinals:
            self._forget_unused_attributes()
        return [str(self.network[ordinal]) for ordinal in ordinals]

    def _forget_unused_attributes(self) -> None:
        used = sorted({index for index in self.allocations if index is not None})
        places = {old: new for new, old in enumerate(used)}
        self.attributes = [self.attributes[index] for index in used]
        self.allocations = [None if index is None else places[index] for index in self.allocations]

    def _check(self) -> None:
        size = self.network.num_addresses
        if size > MAX_BLOCK_ADDRESSES or len(self.allocations) != size:
            raise ValueError(f"{len(self.allocations)} ordinals in {self.cidr}")
        if not all(isinstance(one, dict) for one in self.attributes):
            raise ValueError("an attribute is no object")
        for index in self.allocations:
            if index is not None and not 0 <= index < len(self.attributes):
                raise ValueError(f"no attributes at {index}")
        if len(set(self.unallocated)) != len(self.unallocated):
            raise ValueError("an ordinal is free twice")
        if any(not 0 <= ordinal < size or self.allocations[ordinal] is not None for ordinal in self.unallocated):
            raise ValueError("a free ordinal is in use or outside of the block")


class Reservations:
    """Addresses that nobody gets: those of the IPReservations."""

    __slots__ = ("networks",)

    def __init__(self, cidrs: list[str]) -> None:
        """Raises ValueError for what is no CIDR."""
        networks = [ipaddress.ip_network(cidr, strict=False) for cidr in cidrs]
        self.networks = [network for network in networks if isinstance(network, ipaddress.IPv4Network)]

    def has(self, address: ipaddress.IPv4Address) -> bool:
        """Whether the address is reserved."""
        return any(address in network for network in self.networks)

    def covers(self, block: ipaddress.IPv4Network) -> bool:
        """Whether one reservation covers the whole block."""
        return any(block.subnet_of(network) for network in self.networks)


def _new(resource: str, name: str, spec: JsonObject) -> JsonObject:
    return {"apiVersion": GROUP_VERSION, "kind": _KINDS[resource], "metadata": {"name": name}, "spec": spec}
