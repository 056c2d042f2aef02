"""A node and its pods in network namespaces, and probes: single packets, of which a lab says which arrived.

One namespace is the node, with the host's ends of the workloads' interfaces and an uplink. Another one has all other
ends. Nothing answers there: probes are raw frames, sent and received by one socket, so a thousand cost a fraction of a
second and no verdict depends on how long one waits. The process is bound to one CPU while it probes: the kernel then
forwards packets in the order in which they were sent, and a last packet that nobody filters says that all are through.
"""

import asyncio
import concurrent.futures
import ctypes
import itertools
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import pytest

from clients import testing
from clients.agents.node.dataplane import nft
from loadtest.crash_course import stream
from tests.harness.felix_states import protocol_number

Result = TypeVar("Result")

UPLINK = "uplink"
BATCH_PROBES = 200
"""Fewer than fit into the receiving socket's buffer and the kernel's queue of 1,000 packets."""
FENCE_TIMEOUT_SECONDS = 180.0
"""Only a lost fence takes so long, which is an error of the lab."""

_CLONE_NEWNET = 0x40000000
_ETHERNET_IPV4 = 0x0800
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_PACKET_IGNORE_OUTGOING = 23
_SOL_PACKET = 263
_MAC_NODE = bytes.fromhex("eeeeeeeeeeee")
_MAC_POD = bytes.fromhex("020000000001")
_FENCE = ("192.0.2.1", "192.0.2.2")
"""Documentation addresses, in no workload."""

needed = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft"))),
    reason="needs root, iproute2 and nftables (tools/debian-packages.txt)",
)
"""Marks tests that use a lab."""

_libc = ctypes.CDLL(None, use_errno=True)
_labs = itertools.count()


class Flow(NamedTuple):
    """What a probe is made of, beside its addresses."""

    protocol: int
    destination_port: int = 0
    source_port: int = 40000
    icmp_type: int = 0
    icmp_code: int = 0
    flags: int = 2
    """Of TCP; by default a new connection."""


SYN_ACK, ACK = 0x12, 0x10


class Probe(NamedTuple):
    """One packet. `via` is the interface of the workload that sends it, or UPLINK."""

    via: str
    source: str
    destination: str
    flow: Flow


@dataclass(frozen=True)
class Workload:
    """An interface of the node with a workload behind it."""

    interface: str
    addresses: tuple[str, ...]
    """Addresses of IPv4, without a mask."""


def flow(text: str) -> Flow:
    """Reads `tcp/80`, `tcp/80 from 123` or `icmp/8/0`."""
    first, _, source_port = text.partition(" from ")
    protocol, *numbers = first.split("/")
    number = protocol_number(protocol)
    if number == 1:
        return Flow(number, icmp_type=int(numbers[0]), icmp_code=int(numbers[1]))
    return Flow(number, int(numbers[0]), int(source_port or 40000))


class Lab:
    """Namespaces of its own, removed at the end whatever happens."""

    def __init__(self, *, tracked: bool = False) -> None:
        """`tracked` False takes probes out of connection tracking: each one is judged by itself."""
        prefix = f"dp-{os.getpid()}-{next(_labs)}"
        self.node, self.pods = f"{prefix}-node", f"{prefix}-pods"
        self._nft: nft.Nft | None = None
        self.workloads: tuple[Workload, ...] = ()
        self.sent = 0
        self.sources: dict[int, str] = {}
        """The source addresses with which the last probes arrived, by their positions."""
        self._tracked = tracked
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the namespaces."""
        if self._nft is not None:
            self._nft.close()
        if self._socket is not None:
            self._socket.close()
        for name in (self.node, self.pods):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def _build(self) -> None:
        for name in (self.node, self.pods):
            run("ip", "netns", "add", name)
        command = ("ip", "netns", "exec", self.node, "nft")
        self._nft = nft.Nft(command, in_namespace(self.node, nft.open_sockets))
        run("ip", "-n", self.node, "link", "set", "lo", "up")
        self.in_node(_write_sysctls)
        self._add_link(UPLINK)
        gateway = "169.254.9.9"
        self.ip(
            f"route add {gateway} dev {UPLINK} scope link",
            f"neigh add {gateway} lladdr {_MAC_POD.hex(':')} dev {UPLINK} nud permanent",
            f"route add default via {gateway} dev {UPLINK}",
        )
        if not self._tracked:
            untracked = "table ip probes { chain raw { type filter hook prerouting priority -400; notrack\n }\n}\n"
            self.run_in_node("nft", "-f", "-", stdin=untracked)
        self._socket = in_namespace(self.pods, _open_socket)

    @property
    def nft(self) -> nft.Nft:
        """The node's nftables."""
        assert self._nft is not None
        return self._nft

    def ip(self, *commands: str) -> None:
        """Runs commands of `ip` on the node."""
        run("ip", "-n", self.node, "-batch", "-", stdin="\n".join(commands))

    def run_in_node(self, *command: str, stdin: str = "") -> str:
        """Runs a command in the node's namespace."""
        return run("ip", "netns", "exec", self.node, *command, stdin=stdin)

    def in_node(self, function: Callable[[], Result]) -> Result:
        """Calls a function in the node's namespace."""
        return in_namespace(self.node, function)

    def set_workloads(self, workloads: Iterable[Workload], *, host_addresses: Sequence[str] = ()) -> None:
        """Replaces all workloads."""
        before = self.workloads
        self.workloads = tuple(workloads)
        kept = {workload.interface for workload in before} & {workload.interface for workload in self.workloads}
        self.ip(
            *(f"link del {workload.interface}" for workload in before if workload.interface not in kept),
            "addr flush dev lo scope global",
            *(f"addr replace {address}/32 dev lo" for address in host_addresses),
        )
        for workload in self.workloads:
            if workload.interface not in kept:
                self._add_link(workload.interface)
        self.ip(
            *(
                line
                for workload in self.workloads
                for address in workload.addresses
                for line in (
                    f"route replace {address}/32 dev {workload.interface} scope link",
                    f"neigh replace {address} lladdr {_MAC_POD.hex(':')} dev {workload.interface} nud permanent",
                )
            )
        )

    def _add_link(self, interface: str) -> None:
        node, pod = _MAC_NODE.hex(":"), _MAC_POD.hex(":")
        self.ip(
            f"link add {interface} address {node} type veth peer name {interface} netns {self.pods} address {pod}",
            f"link set {interface} up",
        )
        run("ip", "-n", self.pods, "link", "set", interface, "up")

    def probe(self, probes: Sequence[Probe]) -> list[str | None]:
        """Sends probes. Returns for each the interface on which it arrived, or None."""
        arrived: list[str | None] = [None] * len(probes)
        self.sources.clear()
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            for start in range(0, len(probes), BATCH_PROBES):
                self._probe_batch(probes, range(start, min(start + BATCH_PROBES, len(probes))), arrived)
        finally:
            os.sched_setaffinity(0, allowed)
        return arrived

    def frames_after(self, via: str, frame: bytes) -> list[tuple[str, bytes]]:
        """Sends a frame of any kind. Returns the IPv4 frames that leave the node then, with their interfaces."""
        assert self._socket is not None
        self._socket.sendto(frame, (via, _ETHERNET_IPV4))
        self._socket.sendto(_frame(*_FENCE, Flow(17, 9), 0), (UPLINK, _ETHERNET_IPV4))
        found: list[tuple[str, bytes]] = []
        while True:
            received, (interface, _, packet_type, *_) = self._socket.recvfrom(2048)
            if packet_type == _PACKET_OUTGOING or received[12:14] != b"\x08\x00":
                continue
            if received[26:34] == b"".join(map(socket.inet_aton, _FENCE)):
                return found
            found.append((interface, received))

    def _probe_batch(self, probes: Sequence[Probe], batch: range, arrived: list[str | None]) -> None:
        assert self._socket is not None
        fence = len(probes)
        for index in batch:
            via, source, destination, wanted = probes[index]
            self._socket.sendto(_frame(source, destination, wanted, index), (via, _ETHERNET_IPV4))
        self._socket.sendto(_frame(*_FENCE, Flow(17, 9), fence), (UPLINK, _ETHERNET_IPV4))
        self.sent += len(batch)
        while True:
            frame, (interface, _, packet_type, *_) = self._socket.recvfrom(2048)
            if packet_type == _PACKET_OUTGOING or frame[12:14] != b"\x08\x00":
                continue
            # The node lowers the time to live of what it forwards; anything else is a packet that we sent.
            if frame[14 + 8] != _TTL - 1:
                continue
            index = int.from_bytes(frame[-4:])
            if index == fence:
                return
            if index in batch:
                arrived[index] = interface
                self.sources[index] = socket.inet_ntoa(frame[14 + 12 : 14 + 16])


_TTL = 64


def _open_socket() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    opened.setsockopt(socket.SOL_SOCKET, stream.SO_RCVBUFFORCE, stream.RECEIVE_BUFFER_BYTES)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    opened.settimeout(FENCE_TIMEOUT_SECONDS)
    return opened


def _write_sysctls() -> None:
    for name, value in (("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")):
        with open(f"/proc/sys/net/ipv4/{name}", "w") as file:
            file.write(value)


def in_namespace(name: str, function: Callable[[], Result]) -> Result:
    """Calls a function in a thread that is in another network namespace. Sockets that it opens stay there."""

    def call() -> Result:
        _enter(name)
        return function()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def _enter(name: str) -> None:
    """Moves this thread into another network namespace."""
    with open(f"/run/netns/{name}") as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {name}")


def run(*command: str, stdin: str = "") -> str:
    """Runs a command; its complaint becomes the exception's text."""
    process = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {process.stderr.strip()}")
    return process.stdout


def frame(source: str, destination: str, wanted: Flow, *, payload: bytes = b"", to_mac: bytes = _MAC_NODE) -> bytes:
    """A frame with a packet; the payload is for UDP."""
    inner = _frame(source, destination, wanted, 0)
    if payload:
        udp = struct.pack(">HHHH", wanted.source_port, wanted.destination_port, 8 + len(payload), 0) + payload
        header = bytearray(inner[14:34])
        header[2:4], header[10:12] = (20 + len(udp)).to_bytes(2), bytes(2)
        header[10:12] = _checksum(bytes(header)).to_bytes(2)
        inner = inner[:14] + bytes(header) + udp
    return to_mac + inner[6:]


def _frame(source: str, destination: str, wanted: Flow, number: int) -> bytes:
    source_address, destination_address = socket.inet_aton(source), socket.inet_aton(destination)
    payload = _payload(wanted, source_address + destination_address, number.to_bytes(4))
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, _TTL, wanted.protocol, 0)
    header += source_address + destination_address
    header = header[:10] + _checksum(header).to_bytes(2) + header[12:]
    return _MAC_NODE + _MAC_POD + _ETHERNET_IPV4.to_bytes(2) + header + payload


def _payload(wanted: Flow, addresses: bytes, tail: bytes) -> bytes:
    ports = struct.pack(">HH", wanted.source_port, wanted.destination_port)
    if wanted.protocol == 6:
        body, place = ports + struct.pack(">IIBBHHH", 1, 1, 5 << 4, wanted.flags, 1024, 0, 0) + tail, 16
    elif wanted.protocol == 17:
        body, place = ports + struct.pack(">HH", 12, 0) + tail, 6
    elif wanted.protocol == 1:
        body, place = struct.pack(">BBHHH", wanted.icmp_type, wanted.icmp_code, 0, 1, 1) + tail, 2
        addresses = b""
    else:
        return ports + bytes(8) + tail
    pseudo = addresses + struct.pack(">HH", wanted.protocol, len(body)) if addresses else b""
    return body[:place] + _checksum(pseudo + body).to_bytes(2) + body[place + 2 :]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


class FeedServer:
    """A server of the `felix` feed in the node's namespace, in a thread of its own."""

    def __init__(self, namespace: str, content: Mapping[str, bytes]) -> None:
        self._namespace = namespace
        self._content = content
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"feed {namespace}", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: testing.Server | None = None
        self._stop: asyncio.Event | None = None
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(FENCE_TIMEOUT_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def call(self, function: Callable[[testing.Server], Result]) -> Result:
        """Calls a function with the server, in its thread."""

        async def run_it() -> Result:
            assert self._server is not None
            return function(self._server)

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run_it(), self._loop).result(FENCE_TIMEOUT_SECONDS)

    def put(self, key: str, value: bytes) -> None:
        """Sets a key."""
        self.call(lambda server: server.put("felix", key, value))

    def delete(self, key: str) -> None:
        """Removes a key."""
        self.call(lambda server: server.delete("felix", key))

    def _serve(self) -> None:
        _enter(self._namespace)
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with testing.Server(feeds={"felix": self._content}) as self._server:
            self.address = self._server.address
            self._started.set()
            await self._stop.wait()


class Stream(stream.PacketStream):
    """A stream of packets like one probe."""

    def __init__(self, testbed: Lab, probe: Probe) -> None:
        super().__init__(in_namespace(testbed.pods, _open_socket), in_namespace(testbed.pods, _open_socket))
        self._probe = probe
        self._addresses = socket.inet_aton(probe.source) + socket.inet_aton(probe.destination)

    def send_packet(self, number: int) -> None:
        """See the base class."""
        frame = _frame(self._probe.source, self._probe.destination, self._probe.flow, number)
        self._sender.sendto(frame, (self._probe.via, _ETHERNET_IPV4))

    def number_of(self, data: bytes) -> int | None:
        """See the base class. The socket hears all packets, those of others and those that have not been routed yet."""
        is_own = data[12:14] == b"\x08\x00" and data[14 + 8] == _TTL - 1 and data[26:34] == self._addresses
        return int.from_bytes(data[-4:]) if is_own else None
