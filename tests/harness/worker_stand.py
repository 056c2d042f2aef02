"""A worker on real sockets with a hub beside it, in one event loop; and peers that check what they get."""

import asyncio
import contextlib
import functools
import json
import select
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from cache import objects, resources
from cache.feeds import feed, raw
from protocol import digest, messages, subscriptions
from protocol.native import connection as native
from protocol.native import frames
from protocol.reasons import DisconnectReason
from tests.harness import certificates, channel_harness
from typha import clock, settings
from typha.hub import hub, worker_link
from typha.hub import policy as hub_policy
from typha.hub.channel import HubChannel
from typha.ipc import link
from typha.ipc import messages as ipc
from typha.worker import client, handshake_steps, policy, server, tls, transport

PODS = resources.ResourceType("", "v1", "pods")
NODES = resources.ResourceType("", "v1", "nodes")
FEED = "web"
CLOSED = DisconnectReason.SERVER_ERROR
TIMEOUT_SECONDS = 180.0
ARRIVAL_SECONDS = 1.0
"""In which the kernel, also of a busy machine, brings what was sent to 127.0.0.1."""
open_descriptors, descriptors_before = channel_harness.open_descriptors, channel_harness.descriptors_before
HUB_LIMITS = hub_policy.HubPolicy(log_budget_bytes=1 << 26, segment_bytes=1 << 20)
AnyPeer = TypeVar("AnyPeer", bound="Peer")


def pod(
    name: str, content: object = None, *, version: int = 1, type: resources.ResourceType = PODS
) -> objects.ObjectEvent:
    """An object as a watcher passes it on."""
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version)}
    written = json.dumps({"metadata": metadata, "spec": content}).encode()
    return objects.ObjectEvent(type, "default", name, str(version), written, "v1", "Pod", objects.Origin.EVENT)


def connected_from(host: str, address: tuple[str, int]) -> socket.socket:
    """A connection to `address` from another address of this machine."""
    end = socket.create_connection(address, source_address=(host, 0))
    end.setblocking(False)
    return end


def client_hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a TLS handshake."""
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
    return said.read()


async def eventually(condition: Callable[[], object], *, seconds: float = TIMEOUT_SECONDS) -> None:
    """Returns when the condition holds; fails when it does not within `seconds`."""
    deadline = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.005)


def raw_feed(name: str = FEED, *types: resources.ResourceType) -> feed.RawFeed:
    """A feed of whole objects."""
    spec = raw.FeedSpec(name, tuple(raw.ResourceSpec(type) for type in types or (PODS,)))
    return feed.RawFeed(spec, max_value_bytes=1 << 20)


class WorkerStand:
    """A hub, a link and one worker. Snapshots and blocks are built as soon as they are asked for, unless
    `holds_snapshots`, `holds_blocks`."""

    def __init__(
        self,
        limits: policy.Policy,
        *,
        feed_name: str = FEED,
        hub_limits: hub_policy.HubPolicy = HUB_LIMITS,
        bytes_through: transport.Transport | None = None,
        client_tls: tls.ClientTls | None = None,
        tls_look_seconds: float = 2.0,
        take_steps: handshake_steps.Steps = handshake_steps.take_steps,
    ) -> None:
        self.limits = limits
        self.bytes_through = bytes_through
        self.contexts = tls.Contexts(client_tls, look_seconds=tls_look_seconds) if client_tls is not None else None
        self.take_steps = take_steps
        self.peers_tls: ssl.SSLContext | None = None
        """What peers connect with, unless they say otherwise."""
        self.holds_snapshots = False
        self.holds_blocks = False
        self.broken: list[Exception] = []
        self.feed = raw_feed(feed_name)
        self.hub = hub.Hub([self.feed], hub_limits)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self._peers: list[Peer] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["WorkerStand"]:
        """Runs the worker; ends it by cancellation if the test has not ended it."""
        ours, theirs = link.pair()
        self.loop = asyncio.get_running_loop()
        self.handle = worker_link.WorkerLink(1, ours, self.broken.append, self._watch_write)
        self.link = self.handle.link
        self.loop.add_reader(self.link.fileno(), self._hear)
        config = ipc.WorkerConfig(
            number=1,
            feeds=(self.feed.name,),
            incarnation="00" * 16,
            settings=settings.to_dict(settings.Settings()),
        )
        self.server = server.Server(
            config,
            self.limits,
            self.listener,
            theirs,
            contexts=self.contexts,
            take_steps=self.take_steps,
            bytes_through=self.bytes_through,
        )
        self.task = asyncio.create_task(self.server.run(), name="worker under test")
        self.hub.add_worker(self.handle)
        try:
            yield self
        finally:
            for peer in self._peers:
                peer.close()
            self.task.cancel()
            await asyncio.wait([self.task])
            self.hang_up()
            self.hub.close()
            self.listener.close()

    def _watch_write(self, active: bool) -> None:
        if active:
            self.loop.add_writer(self.link.fileno(), self.handle.flush)
        else:
            self.loop.remove_writer(self.link.fileno())

    def _hear(self) -> None:
        self.hub.hear(self.handle)
        if self.broken:
            self.loop.remove_reader(self.link.fileno())
        while self.hub.derived.is_taking_over:
            self.hub.take_over()
        self.make_snapshots()
        self.make_blocks()

    def hang_up(self) -> None:
        """The hub is gone."""
        if self.link.fileno() >= 0:
            self.loop.remove_reader(self.link.fileno())
            self.loop.remove_writer(self.link.fileno())
            self.link.close()

    def make_snapshots(self) -> None:
        """Builds what was asked for."""
        while not self.holds_snapshots and (channel := self.hub.snapshots.take()) is not None:
            build_snapshot(self.hub, channel)

    def make_blocks(self) -> None:
        """Builds the catch-up blocks that were asked for."""
        while self.hub.catch_ups.has_work and not self.holds_blocks:
            for _ in self.hub.catch_ups.steps():
                pass

    def put(self, *events: objects.ObjectEvent) -> None:
        """Objects change, as one batch."""
        for event in events:
            self.hub.apply(event)
        self.commit()

    def delete(self, name: str) -> None:
        """An object goes."""
        self.hub.delete(pod(name))
        self.commit()

    def commit(self) -> None:
        """Publishes, and makes the snapshots that are asked for."""
        self.hub.commit()
        self.make_snapshots()

    def in_sync(self) -> None:
        """The API server's state is known."""
        self.hub.status(PODS, messages.SyncStatus.IN_SYNC)
        self.commit()

    @property
    def content(self) -> dict[str, bytes]:
        """The map that every client must have."""
        return {entry.key: entry.value for entry in self.feed.store}

    @property
    def channel(self) -> HubChannel:
        """The one channel that is open."""
        [channel] = self.hub.channels.values()
        return channel

    @property
    def disconnects(self) -> dict[str, int]:
        """Ended connections by reason."""
        return {reason.value: count for reason, count in self.server.stats.counts.disconnects.items()}

    async def connect(self, *, receive_buffer_bytes: int | None = None, host: str = "127.0.0.1") -> "Peer":
        """A TCP connection from this address that has said nothing yet."""
        return await self.join(Peer, receive_buffer_bytes=receive_buffer_bytes, host=host)

    async def join(
        self, kind: type[AnyPeer], *, receive_buffer_bytes: int | None = None, host: str = "127.0.0.1"
    ) -> AnyPeer:
        """Such a peer, connected; it has said nothing yet."""
        end = socket.socket()
        end.bind((host, 0))
        if receive_buffer_bytes is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        end.setblocking(False)
        peer = kind(end)
        self._peers.append(peer)
        await self.loop.sock_connect(end, self.address)
        if self.peers_tls is not None:
            peer.socket = await certificates.shake(end, self.peers_tls)
        return peer

    async def subscribe(
        self,
        *,
        feed: str = "",
        features: frozenset[str] = frozenset(),
        receive_buffer_bytes: int | None = None,
        subscription: subscriptions.Subscription | None = None,
        node: str = "",
        host: str = "127.0.0.1",
    ) -> "Peer":
        """A client that has said hello; without a name it wants the one feed that there is."""
        peer = await self.connect(receive_buffer_bytes=receive_buffer_bytes, host=host)
        if subscription is not None:
            features |= {messages.Feature.SUBSCRIPTIONS}
        peer.subscription, peer.node = subscription, node
        hello = messages.ClientHello(
            feed=feed or self.feed.name, agent="test", features=features, node=node, subscription=subscription
        )
        peer.say(hello)
        return peer

    async def client_of(self, peer: "Peer") -> client.Client:
        """The server's end of a peer."""
        host, port = peer.socket.getsockname()
        clients = self.server.poller.clients
        await eventually(lambda: any(one.address == f"{host}:{port}" for one in clients.values()))
        [found] = [one for one in clients.values() if one.address == f"{host}:{port}"]
        return found

    async def block(self, peer: "Peer") -> client.Client:
        """Changes one object until the peer, which does not read, stands inside a frame; the server's end of it."""
        blocked = await self.client_of(peer)
        version = 1_000_000
        while not blocked.waiting or blocked.offset == self.channel.log.end:
            version += 1
            self.put(pod("filler", str(version).rjust(60_000, "y"), version=version))
            await asyncio.sleep(0.002)
        return blocked

    async def converged(self, *peers: "Peer") -> None:
        """Returns when the peers, reading all the time, have the map and the status in-sync."""
        await asyncio.gather(*(peer.read_until(functools.partial(self._is_current, peer)) for peer in peers))

    def _is_current(self, peer: "Peer") -> bool:
        return peer.entries == self.content_for(peer) and peer.status is messages.SyncStatus.IN_SYNC

    def content_for(self, peer: "Peer") -> dict[str, bytes]:
        """The map that a client must have: what its subscription selects, if one is in force."""
        wanted = peer.subscription
        if wanted is None or peer.hello is None or messages.Feature.SUBSCRIPTIONS not in peer.hello.features:
            return self.content
        return {key: value for key, value in self.content.items() if is_selected(wanted, peer.node, key, value)}


def is_selected(wanted: subscriptions.Subscription, node: str, key: str, value: bytes) -> bool:
    """Whether a client on this node gets a key, told otherwise than the service tells it."""
    _, group, version, resource, namespace, name = key.split("/")
    found = json.loads(value)
    owner = {"pods": found.get("spec", {}) or {}, "nodes": {"nodeName": name}}.get(resource)
    return (
        (wanted.kinds is None or f"{group}/{version}/{resource}" in wanted.kinds)
        and (wanted.namespaces is None or namespace in wanted.namespaces)
        and (wanted.prefixes is None or any(key.startswith(prefix) for prefix in wanted.prefixes))
        and (not wanted.own_node or owner is None or owner.get("nodeName", "") == node != "")
    )


def build_snapshot(the_hub: hub.Hub, channel: HubChannel) -> None:
    """Makes a channel's snapshot in one go."""
    builder = channel.begin_snapshot()
    for _ in builder.steps():
        pass
    channel.end_snapshot(builder.snapshot)
    the_hub.snapshot_built(channel)


class Peer:
    """A client that believes nothing: frames follow on, digests are right, no status without data."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.connection = native.Connection(native.Role.CLIENT)
        self.entries: dict[str, bytes] = {}
        self.status: messages.SyncStatus | None = None
        self.told: list[messages.SyncStatus] = []
        """All statuses."""
        self.deleted: list[str] = []
        """Keys that went by an update, in order."""
        self.hello: messages.ServerHello | None = None
        self.goodbye: messages.Goodbye | None = None
        self.received = bytearray()
        """All bytes."""
        self.snapshots = 0
        self.pings = 0
        self.updates = 0
        self.ended = False
        """The server has closed."""
        self.ended_well = True
        """It was no reset, and with TLS no end without a close_notify."""
        self.answers_pings = True
        self.longest_silence_seconds = 0.0
        self._heard_at = clock.monotonic()
        self._building: dict[str, bytes] | None = None
        self.subscription: subscriptions.Subscription | None = None
        self.node = ""

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()

    def say(self, message: messages.Message) -> None:
        """Sends a message."""
        self.connection.send(message)
        self.send(self.connection.data_to_send())

    def send(self, data: bytes) -> None:
        """Sends a few bytes."""
        assert self.socket.send(data) == len(data)

    def read(self, limit: int = 1 << 20) -> bool:
        """Takes what is there; False if there was nothing."""
        try:
            data = self.socket.recv(limit)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
            self.ended_well = False
        if not data:
            self.ended = True
            return False
        now = clock.monotonic()
        self.longest_silence_seconds = max(self.longest_silence_seconds, now - self._heard_at)
        self._heard_at = now
        self.received += data
        answers = self._hear(data)
        if answers and self.answers_pings:
            try:
                self.send(answers)
            except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
                self.ended_well = False  # the server closed after its ping; there may be more to read before the end
        return True

    def _hear(self, data: bytes) -> bytes:
        """Takes messages; gives what the protocol itself answers."""
        self.connection.receive_data(data)
        while (message := self.connection.next_event()) is not None:
            self._take(message)
        return self.connection.data_to_send()

    async def read_until(self, condition: Callable[[], object], *, seconds: float = TIMEOUT_SECONDS) -> None:
        """Reads until the condition holds; fails at the end of the connection or of the time."""
        deadline = clock.monotonic() + seconds
        while not condition():
            if self.read():
                await asyncio.sleep(0)
            else:
                assert not self.ended, f"closed by the server: {self.goodbye}"
                is_in_time = clock.monotonic() < deadline or self._is_arriving()
                assert is_in_time, f"not within {seconds} s; snapshots={self.snapshots}"
                await asyncio.sleep(0.002)

    def _is_arriving(self) -> bool:
        """Whether something was sent in time. The loop's time may be virtual, but the kernel's is not."""
        return bool(select.select([self.socket], [], [], ARRIVAL_SECONDS)[0])

    async def read_to_end(self, *, seconds: float = TIMEOUT_SECONDS) -> None:
        """Reads until the server closes."""
        deadline = clock.monotonic() + seconds
        while not self.ended:
            if not self.read():
                assert clock.monotonic() < deadline or self._is_arriving(), f"not closed within {seconds} s"
                await asyncio.sleep(0.002)

    @property
    def stream(self) -> bytes:
        """All bytes behind the server's hello."""
        start = len(frames.PREFACE)
        (length,) = struct.unpack_from(">I", self.received, start)
        return bytes(self.received[start + 4 + length :])

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.ServerHello():
                self.hello = message
            case messages.Goodbye():
                self.goodbye = message
            case messages.Ping():
                self.pings += 1
            case messages.Status():
                self.status = message.status
                self.told.append(message.status)
            case messages.SnapshotBegin():
                self._building = {}
            case messages.SnapshotChunk():
                assert self._building is not None
                for update in message.updates:
                    assert update.value is not None
                    self._building[update.key] = update.value
            case messages.SnapshotEnd():
                assert self._building is not None
                assert len(self._building) == message.keys
                assert digest.state_digest(self._building.items()) == message.digest
                self.entries, self._building = self._building, None
                self.snapshots += 1
            case messages.Updates():
                self._apply(message)

    def _apply(self, message: messages.Updates) -> None:
        for update in message.updates:
            self.updates += 1
            if update.value is None:
                self.deleted.append(update.key.rpartition("/")[2])
            if update.value is None and self.status is messages.SyncStatus.CATCHING_UP:
                self.entries.pop(update.key, None)  # it may never have known the key
            elif update.value is None:
                del self.entries[update.key]
            else:
                self.entries[update.key] = update.value


FAST = policy.Policy(
    ping_interval_seconds=0.4,
    pong_timeout_seconds=30.0,
    handshake_timeout_seconds=30.0,
    no_progress_timeout_seconds=30.0,
    refusal_hold_seconds=0.3,
    goodbye_linger_seconds=0.3,
    stats_interval_seconds=0.05,
    snapshots_deep_max=0,
)
"""Short where something is waited for in many tests, long where it would only be in the way. The kernel never holds a
whole snapshot: many tests are about a client in the middle of one."""
