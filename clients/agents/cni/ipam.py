"""Gives pods addresses and takes them back, on IPAMBlock, BlockAffinity and IPAMHandle in the API server. Pure.

Each operation is a generator. It yields a `Request`, gets the API server's answer by `send`, or one of the errors below
by `throw`, and returns its result. So a test can run the operations of several nodes against each other, one request
at a time, and end any of them after any request, as a crash does.

Any number of nodes may do this at once, and any may crash between two requests:

1. Every write is a compare-and-set: it fails with `Conflict` if the object has changed since it was read. An address
   belongs to the attachment that the block names, and to nobody before that write.
2. The IPAMHandle is written before the block, and deleted after it. Whatever an attachment may have, `release` finds by
   its handle. `collect` finds the rest.
3. A node claims a block in three writes: a pending affinity, the block with the first address in it, the confirmed
   affinity. A block with a used address cannot be taken away, so a confirmed affinity tells the truth. Whoever finds
   a pending affinity of its own ends the claim.
4. A deletion marks the object first, by compare-and-set. A reader that finds the mark deletes the object, and takes it
   as absent. The API server could compare while it deletes, but Calico's other programs rely on the mark.
"""

import ipaddress
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from clients.agents.cni import records
from clients.agents.cni.records import Attributes, Block, JsonObject, Reservations

MAX_CONFLICTS: Final = 100
"""Writes of one object that may fail before the operation gives up, as in Calico: then somebody writes in a circle."""
MAX_CONFIRMATIONS: Final = 5
"""Attempts to confirm a claim that other writers keep changing."""
DEFAULT_MAX_BLOCKS: Final = 20
"""Blocks that a node may claim, if IPAMConfig does not say it; Calico's default."""
DEFAULT_BLOCK_BITS: Final = 26
_REASON_CHARS_MAX: Final = 300
RECLAIM_AFTER_SECONDS: Final = 60.0
"""Age from which an empty block of another node is taken when the pools have no other: its node had time to use it."""
ORPHAN_AFTER_SECONDS: Final = 600.0
"""Age from which a handle that no block knows is left over. The call that wrote it has ended: one takes seconds."""


class Missing(Exception):
    """The object does not exist."""


class Exists(Exception):
    """An object of this name exists already."""


class Conflict(Exception):
    """The object has changed since it was read."""


class IpamError(Exception):
    """The operation is not possible now."""


class AlreadyAttached(IpamError):
    """The attachment has an address already, or a call that crashed has begun to give it one."""


class Exhausted(IpamError):
    """The pools have no free address for this node."""


class Busy(IpamError):
    """Other writers were faster again and again."""


class Get(NamedTuple):
    """Read an object."""

    resource: str
    name: str


class List(NamedTuple):
    """Read all objects with these labels."""

    resource: str
    labels: dict[str, str]


class Create(NamedTuple):
    """Add an object."""

    resource: str
    value: JsonObject


class Replace(NamedTuple):
    """Write an object that still has the resourceVersion of `value`."""

    resource: str
    value: JsonObject


class Delete(NamedTuple):
    """Delete an object that still has the uid and resourceVersion of `value`."""

    resource: str
    value: JsonObject


Request: TypeAlias = Get | List | Create | Replace | Delete
Result = TypeVar("Result")
Steps: TypeAlias = Generator[Request, Any, Result]


class Node(NamedTuple):
    """On whose behalf an address is wanted, and at which time."""

    name: str
    now_seconds: float


class Limits(NamedTuple):
    """Members of IPAMConfig and the IPReservations."""

    reserved: Reservations
    strict_affinity: bool = False
    claims_blocks: bool = True
    max_blocks: int = DEFAULT_MAX_BLOCKS
    cooldown_seconds: float = 0.0


class Pool(NamedTuple):
    """An IPPool from which workloads get addresses."""

    name: str
    network: ipaddress.IPv4Network
    block_bits: int


def read_limits() -> Steps[Limits]:
    """What restricts the addresses."""
    try:
        spec = (yield from _get("ipamconfigs", "default")).get("spec", {})
    except Missing:
        spec = {}
    cidrs: list[str] = []
    for reservation in (yield from _list("ipreservations")):
        cidrs += reservation.get("spec", {}).get("reservedCIDRs") or []
    return Limits(
        Reservations(cidrs),
        strict_affinity=bool(spec.get("strictAffinity")),
        claims_blocks=bool(spec.get("autoAllocateBlocks", True)),
        max_blocks=int(spec.get("maxBlocksPerHost") or DEFAULT_MAX_BLOCKS),
        cooldown_seconds=float(spec.get("ipCooldownSeconds") or 0),
    )


def read_pools(
    names: Iterable[str] = (), *, use: str = "Workload", left_out: Callable[[str], object] = lambda _: None
) -> Steps[list[Pool]]:
    """The pools that give addresses for a use on any node; only those with these names or CIDRs, if there are any.

    A pool with another nodeSelector than all() is left out: this plugin does not read the labels of nodes. `left_out`
    is told of it, and of a malformed pool.
    """
    wanted = list(names)
    pools = []
    for value in (yield from _list("ippools")):
        spec = value.get("spec", {})
        name = value["metadata"]["name"]
        if wanted and name not in wanted and spec.get("cidr") not in wanted:
            continue
        if spec.get("disabled") or use not in (spec.get("allowedUses") or ["Workload", "Tunnel"]):
            continue
        if spec.get("assignmentMode") == "Manual" and not wanted:
            continue
        if (spec.get("nodeSelector") or "all()") != "all()":
            left_out(f"IPPool {name} is left out: its nodeSelector is not all(), and no other one is supported")
            continue
        try:
            network = ipaddress.ip_network(str(spec["cidr"]))
            bits = int(spec.get("blockSize") or DEFAULT_BLOCK_BITS)
        except (LookupError, TypeError, ValueError) as error:
            left_out(f"IPPool {name} is left out: {error!r}"[:_REASON_CHARS_MAX])
            continue
        if isinstance(network, ipaddress.IPv4Network) and network.prefixlen <= bits <= network.max_prefixlen:
            pools.append(Pool(name, network, bits))
        elif isinstance(network, ipaddress.IPv4Network):
            left_out(f"IPPool {name} is left out: {network} has no blocks of /{bits}")
    return sorted(pools, key=lambda pool: wanted.index(pool.name) if pool.name in wanted else len(wanted))


def assign(node: Node, attributes: Attributes, pools: list[Pool], limits: Limits) -> Steps[str]:
    """Give an attachment an address of these pools.

    Raises AlreadyAttached, Exhausted, Busy. An attachment that failed may have left a handle: `release` it.
    """
    attempt = _Attempt(node, attributes, pools, limits)
    address = yield from attempt.from_own_blocks()
    if not address:
        address = yield from attempt.from_new_block()
    if not address and not limits.strict_affinity:
        address = yield from attempt.from_any_block()
    if not address:
        raise Exhausted(
            f"no address is free for node {node.name} in {', '.join(pool.name for pool in pools) or 'no pool'}"
        )
    return address


def release(handle: str) -> Steps[list[str]]:
    """Take all addresses from an attachment; returns them. Does nothing for an unknown handle. Raises Busy."""
    released: list[str] = []
    for _ in range(MAX_CONFLICTS):
        try:
            found = yield from _get("ipamhandles", records.handle_name(handle))
        except Missing:
            return released
        if found["spec"].get("handleID") != handle:
            return released
        for cidr in found["spec"].get("block") or {}:
            released += yield from _release_in(cidr, handle)
        if (yield from _delete("ipamhandles", found)):
            return released
    raise Busy(f"the handle {handle} keeps changing")


def addresses(handle: str) -> Steps[list[str]]:
    """The addresses that an attachment has."""
    try:
        found = yield from _get("ipamhandles", records.handle_name(handle))
    except Missing:
        return []
    held = []
    for cidr in found["spec"].get("block") or {}:
        try:
            block = Block.parse((yield from _get("ipamblocks", records.cidr_name(cidr))))
        except Missing:
            continue
        held += [one.address for one in block.used if one.handle == handle]
    return held


def collect(node: Node, network: str, valid: frozenset[str]) -> Steps[list[str]]:
    """Take the addresses from all attachments of a node and network that are not valid; returns what was released.

    Also ends the claims on blocks that a crash has left open.
    """
    released = []
    known = set()
    for block in (yield from _blocks()):
        for used in block.used:
            known.add(used.handle)
            if (
                used.owner.get("node") == node.name
                and used.handle.startswith(network + ".")
                and used.handle not in valid
            ):
                released += yield from _release_in(block.cidr, used.handle)
                if records.is_name(used.handle.lower()):
                    yield from release(used.handle)
    for value in (yield from _list("ipamhandles")):
        handle = str(value["spec"].get("handleID"))
        age_seconds = node.now_seconds - records.parse_time(value["metadata"].get("creationTimestamp") or "")
        if handle.startswith(network + ".") and not {handle} & (valid | known) and age_seconds > ORPHAN_AFTER_SECONDS:
            yield from _delete("ipamhandles", value)
            released.append(handle)
    yield from settle(node.name)
    return released


def settle(node: str) -> Steps[None]:
    """End the claims of a node that are neither confirmed nor gone."""
    for affinity in (yield from _list("blockaffinities", records.affinity_labels(node))):
        spec = affinity["spec"]
        if spec["node"] != node or (spec["state"] == records.CONFIRMED and not records.is_deleted(affinity)):
            continue
        try:
            block = Block.parse((yield from _get("ipamblocks", records.cidr_name(spec["cidr"]))))
        except Missing:
            yield from _delete("blockaffinities", affinity)
            continue
        if block.node != node or records.is_deleted(affinity):
            yield from _delete("blockaffinities", affinity)
        if block.node == node:
            yield from _confirm(node, spec["cidr"])


def release_block(cidr: str, owner: str, *, sequence: int | None = None) -> Steps[bool]:
    """Take a block from a node: an empty one is deleted, another one only loses its owner. Returns whether it is done.

    With `sequence`, only an empty block that has not changed since it had this sequence is taken.
    """
    try:
        affinity = yield from _get("blockaffinities", records.affinity_name(owner, cidr))
        value = yield from _get("ipamblocks", records.cidr_name(cidr))
    except Missing:
        return False
    block = Block.parse(value)
    if block.node != owner or (sequence is not None and (block.sequence != sequence or not block.is_empty)):
        return False
    try:
        affinity = yield Replace("blockaffinities", _with_state(affinity, records.PENDING_DELETION))
        if block.is_empty:
            if not (yield from _delete("ipamblocks", value)):
                return False
        else:
            block.disown()
            yield Replace("ipamblocks", block.record())
    except (Conflict, Missing):
        return False
    yield from _delete("blockaffinities", affinity)
    return True


class _Attempt:
    """One call of `assign`, and the handle that it has written."""

    def __init__(self, node: Node, attributes: Attributes, pools: list[Pool], limits: Limits) -> None:
        self._node = node
        self._attributes = attributes
        self._pools = pools
        self._limits = limits
        self._handle: JsonObject | None = None
        self._claims = 0

    def from_own_blocks(self) -> Steps[str]:
        """An address of a block that the node has claimed, or nothing."""
        affinities = yield from _list("blockaffinities", records.affinity_labels(self._node.name))
        own = [one["spec"]["cidr"] for one in affinities if one["spec"]["node"] == self._node.name]
        states = {one["spec"]["cidr"]: one["spec"]["state"] for one in affinities if not records.is_deleted(one)}
        self._claims = len(own)
        for cidr in sorted((cidr for cidr in own if self._pool_of(cidr)), key=self._order):
            address = (yield from self._from_block(cidr)) if states.get(cidr) == records.CONFIRMED else None
            if address is None:
                address = yield from self._claim(cidr)
            if address:
                return address
        return ""

    def from_new_block(self) -> Steps[str]:
        """An address of a block that the node claims now, or nothing."""
        if not self._limits.claims_blocks or self._claims >= self._limits.max_blocks:
            return ""
        known = yield from self._blocks()
        for cidr in self._candidates(known):
            address = yield from self._claim(cidr)
            if address:
                return address
        for block in known.values():
            age_seconds = self._node.now_seconds - records.parse_time(block.claimed_at)
            if (
                not block.is_empty
                or not block.node
                or block.node == self._node.name
                or age_seconds < RECLAIM_AFTER_SECONDS
            ):
                continue
            if (yield from release_block(block.cidr, block.node, sequence=block.sequence)):
                address = yield from self._claim(block.cidr)
                if address:
                    return address
        return ""

    def from_any_block(self) -> Steps[str]:
        """An address of a block that belongs to another node or to none, or nothing."""
        for cidr in (yield from self._blocks()):
            address = yield from self._from_block(cidr, is_borrowed=True)
            if address:
                return address
        return ""

    def _blocks(self) -> Steps[dict[str, Block]]:
        """The blocks of the pools, by CIDR."""
        return {block.cidr: block for block in (yield from _blocks()) if self._pool_of(block.cidr)}

    def _candidates(self, known: dict[str, Block]) -> Iterator[str]:
        """CIDRs of blocks that nobody has. Each node begins at another place, so nodes rarely want the same block."""
        for pool in self._pools:
            size = 1 << (32 - pool.block_bits)
            count = pool.network.num_addresses // size
            first = zlib.crc32(self._node.name.encode()) % count
            for number in range(count):
                start = int(pool.network.network_address) + (first + number) % count * size
                block = ipaddress.IPv4Network((start, pool.block_bits))
                if str(block) not in known and not self._limits.reserved.covers(block):
                    yield str(block)

    def _pool_of(self, cidr: str) -> Pool | None:
        block = ipaddress.ip_network(cidr)
        return next((pool for pool in self._pools if block.version == 4 and block.subnet_of(pool.network)), None)

    def _order(self, cidr: str) -> tuple[int, ipaddress.IPv4Network]:
        pool = self._pool_of(cidr)
        return self._pools.index(pool) if pool else len(self._pools), ipaddress.IPv4Network(cidr)

    def _from_block(self, cidr: str, *, is_borrowed: bool = False) -> Steps[str | None]:
        """An address of a block that exists, nothing from a full one, None if it is gone or another node's."""
        for _ in range(MAX_CONFLICTS):
            try:
                block = Block.parse((yield from _get("ipamblocks", records.cidr_name(cidr))))
            except Missing:
                return None
            except records.Malformed:
                return ""  # as if it were full
            if block.node != self._node.name and not is_borrowed:
                return None
            block.end_cooldowns(self._node.now_seconds, cooldown_seconds=self._limits.cooldown_seconds)
            address = block.allocate(self._attributes, self._limits.reserved)
            if not address:
                return ""
            yield from self._write_handle(cidr)
            try:
                yield Replace("ipamblocks", block.record())
            except (Conflict, Missing):
                continue
            return address
        raise Busy(f"block {cidr} keeps changing")

    def _claim(self, cidr: str) -> Steps[str]:
        """Claim a block and take its first address, or nothing: another node was faster, or it is full."""
        block = Block.new(
            cidr,
            self._node.name,
            now_ns=int(self._node.now_seconds * 1e9),
            claimed_at=records.format_time(self._node.now_seconds),
        )
        address: str | None = block.allocate(self._attributes, self._limits.reserved)
        if not address:
            return ""
        affinity = yield from _pending_affinity(self._node.name, cidr)
        yield from self._write_handle(cidr)
        for _ in range(MAX_CONFLICTS):
            try:
                yield Create("ipamblocks", block.record())
            except Exists:
                try:
                    owner = Block.parse((yield from _get("ipamblocks", records.cidr_name(cidr)))).node
                except Missing:
                    continue
                except records.Malformed:
                    return ""
                if owner != self._node.name:
                    yield from _delete("blockaffinities", affinity)
                    return ""
                address = yield from self._from_block(cidr)
                if address is None:
                    continue
            yield from _confirm(self._node.name, cidr)
            return address or ""
        raise Busy(f"block {cidr} keeps appearing and vanishing")

    def _write_handle(self, cidr: str) -> Steps[None]:
        """Say that the attachment has, or soon may have, an address of this block."""
        if self._handle is None:
            self._handle = yield from self._new_handle(cidr)
        elif cidr not in self._handle["spec"]["block"]:
            spec = {**self._handle["spec"], "block": {cidr: 1}}
            try:
                self._handle = yield Replace("ipamhandles", {**self._handle, "spec": spec})
            except (Conflict, Missing):
                raise Busy(f"{self._attributes.handle} is being deleted") from None

    def _new_handle(self, cidr: str) -> Steps[JsonObject]:
        handle = self._attributes.handle
        for _ in range(MAX_CONFLICTS):
            try:
                created: JsonObject = yield Create("ipamhandles", records.new_handle(handle, cidr))
            except Exists:
                try:
                    yield from _get(
                        "ipamhandles", records.handle_name(handle)
                    )  # ends a deletion that a crash cut short
                except Missing:
                    continue
                raise AlreadyAttached(f"{handle} is attached already, or is to be deleted first") from None
            return created
        raise Busy(f"the handle {handle} keeps changing")


def _get(resource: str, name: str) -> Steps[JsonObject]:
    """An object. Deletes one that has the mark. Raises Missing."""
    value: JsonObject = yield Get(resource, name)
    if resource != "ipamconfigs" and records.is_deleted(value):
        yield from _delete(resource, value)
        raise Missing(name)
    return value


def _list(resource: str, labels: dict[str, str] | None = None) -> Steps[list[JsonObject]]:
    values: list[JsonObject] = yield List(resource, labels or {})
    return values


def _blocks() -> Steps[list[Block]]:
    """All blocks that make sense and are not being deleted."""
    blocks = []
    for value in (yield from _list("ipamblocks")):
        try:
            if not records.is_deleted(value):
                blocks.append(Block.parse(value))
        except records.Malformed:
            continue
    return blocks


def _delete(resource: str, value: JsonObject) -> Steps[bool]:
    """Mark and delete an object that has not changed. Returns whether it is gone."""
    try:
        if not records.is_deleted(value):
            value = yield Replace(resource, records.as_deleted(value))
        yield Delete(resource, value)
    except Conflict:
        return False
    except Missing:
        return True
    return True


def _release_in(cidr: str, handle: str) -> Steps[list[str]]:
    """Free the addresses of a handle in one block."""
    for _ in range(MAX_CONFLICTS):
        try:
            block = Block.parse((yield from _get("ipamblocks", records.cidr_name(cidr))))
        except Missing:
            return []
        released = block.release(handle)
        if not released:
            return []
        try:
            yield Replace("ipamblocks", block.record())
        except (Conflict, Missing):
            continue
        return released
    raise Busy(f"block {cidr} keeps changing")


def _pending_affinity(node: str, cidr: str) -> Steps[JsonObject]:
    """The node's affinity to a block, pending or confirmed."""
    for _ in range(MAX_CONFLICTS):
        try:
            created: JsonObject = yield Create("blockaffinities", records.new_affinity(node, cidr))
        except Exists:
            pass
        else:
            return created
        try:
            found = yield from _get("blockaffinities", records.affinity_name(node, cidr))
            if found["spec"]["state"] == records.CONFIRMED:
                return found
            replaced: JsonObject = yield Replace("blockaffinities", _with_state(found, records.PENDING))
        except (Missing, Conflict):
            continue
        return replaced
    raise Busy(f"the affinity of {node} to {cidr} keeps changing")


def _confirm(node: str, cidr: str) -> Steps[None]:
    """Confirm that a block belongs to the node, as the block says. Raises Busy."""
    for _ in range(MAX_CONFIRMATIONS):
        affinity = yield from _pending_affinity(node, cidr)
        if affinity["spec"]["state"] == records.CONFIRMED:
            return
        try:
            yield Replace("blockaffinities", _with_state(affinity, records.CONFIRMED))
        except (Conflict, Missing):
            continue
        return
    raise Busy(f"the affinity of {node} to {cidr} keeps changing")


def _with_state(affinity: JsonObject, state: str) -> JsonObject:
    labels = {**(affinity["metadata"].get("labels") or {}), **records.affinity_labels(affinity["spec"]["node"])}
    metadata = {**affinity["metadata"], "labels": labels}
    return {**affinity, "metadata": metadata, "spec": {**affinity["spec"], "state": state, "deleted": "false"}}
