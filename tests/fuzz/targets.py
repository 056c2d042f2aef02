"""The decoders, each with inputs to begin from, a way to change them, and the errors that it may raise."""

import dataclasses
import enum
import functools
import importlib.util
import io
import json
import os
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from cache import objects, resources, yamljson
from cache.feeds import feed, raw
from cache.feeds.calico import feed as calico
from cache.feeds.calico import releases, syncers
from cache.kube import access, credentials
from cache.watch import decoding
from clients import applied, differ, follower, statefile
from clients import errors as client_errors
from clients.agents.node import calculation, desired
from protocol import digest, errors, formats, messages, subscriptions
from protocol.gob import decoder
from protocol.native import codec, connection, frames
from protocol.typha import codec as typha_codec
from protocol.typha import connection as typha
from protocol.typha import messages as typha_messages
from protocol.typha import snappy
from tests import wire
from tests.docs import vectors
from tests.fuzz import mutation, sessions
from tests.fuzz import tls as tls_links
from tests.harness import corpus, felix_recordings, repository, yaml_cases
from typha.ipc import messages as ipc
from typha.settings import feeds_file, loading, sources
from typha.worker import protocol_adapters, tls

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target: inputs that were costly or wrong once."""
_MAX_SEED_BYTES = 6000
"""Length to which recorded streams are cut: later data repeats the beginning."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One decoder. `feed` passes an input to it and returns what shows how far the input came."""

    name: str
    feed: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    mutate: mutation.Mutate
    declared: tuple[type[Exception], ...]
    """The errors that callers expect."""
    weight: float = 1
    """Share of the inputs. Decoders of what clients send get most, those that write files least."""

    def inputs(self) -> list[bytes]:
        """What to begin from: the seeds, and the corpus in the repository."""
        kept = [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]
        return [*self.seeds(), *kept]


# What clients send.

_OFFER = protocol_adapters.Offer(frozenset(("pods", *typha_messages.SYNCER_TYPES)), bytes(16), 10.0, 1 << 24)


def serve(data: bytes) -> str:
    """Acts as a worker does with a new connection. Returns the events."""
    adapter: protocol_adapters.ProtocolAdapter | None = None
    said = []
    for piece in mutation.pieces(data):
        if adapter is None:
            begun = protocol_adapters.begin(piece, _OFFER, 1 << 40)
            if isinstance(begun, protocol_adapters.Refused):
                return "refused"
            adapter = begun
        for event in adapter.receive(piece):
            said.append(type(event).__name__[0])
            if isinstance(event, protocol_adapters.Refused):
                adapter.goodbye(event)
                return "".join(said)
        assert adapter.pending_bytes <= frames.MAX_HELLO_FRAME_BYTES + frames.HEADER.size
    return "".join(said)[:20]


def _typha_client_streams() -> list[bytes]:
    found = [wire.load(f"client-hello/{path.name}") for path in sorted((wire.FOLDER / "client-hello").glob("*.bin"))]
    for folder, pattern in (("client-to-server-odd", "*.bin"), ("streams", "*.client.bin")):
        found += [path.read_bytes()[:_MAX_SEED_BYTES] for path in sorted((wire.FOLDER / folder).glob(pattern))]
    return [stream for stream in found if stream]


# What servers send.


def _follow_native(data: bytes) -> int:
    protocol = connection.Connection(connection.Role.CLIENT, max_frame_bytes=mutation.MAX_BYTES)
    received = 0
    try:
        for piece in mutation.pieces(data):
            protocol.receive_data(piece)
            while protocol.next_event() is not None:
                received += 1
            assert protocol.pending_bytes <= mutation.MAX_BYTES + frames.HEADER.size
    except errors.RemoteProtocolError:
        assert protocol.state is connection.State.ERROR
        assert protocol.next_event() is None
        raise
    return received


def _follow_resuming(data: bytes) -> int:
    """A client that has the map of the page's sessions, and whose own map must stay one that has its digest."""
    position = messages.ResumePosition(vectors.INCARNATION, 40)
    content = {vectors.POD: vectors.POD_VALUE, vectors.NODE: vectors.NODE_VALUE}
    known = differ.Differ()
    updates = [messages.Update(key, value, "1", 1) for key, value in content.items()]
    known.restore(updates, position=position, chunks=2)
    protocol = connection.Connection(connection.Role.CLIENT, max_frame_bytes=mutation.MAX_BYTES)
    features = frozenset({"zstd", "resume", "chunk-digests"})
    protocol.send(known.resuming(messages.ClientHello("workloads", "fuzz", features=features)))
    received = 0
    try:
        for piece in mutation.pieces(data):
            protocol.receive_data(piece)
            while (message := protocol.next_event()) is not None:
                received += 1
                batch = known.receive(message)
                for update in batch.updates if batch is not None else ():
                    content.pop(update.key, None)
                    if update.value is not None:
                        content[update.key] = update.value
    finally:
        assert known.digest == digest.state_digest(content.items())
        assert len(known) == len(content)
    return received


def _resumed_streams() -> list[bytes]:
    found = (vectors.RESUMED_SESSION, vectors.RESUMED_BY_DIGESTS, vectors.SESSION)
    return [b"".join(step.data for step in session if step.sender == "server") for session in found]


class _NoTime:
    """Timers for which all is due at once."""

    def __init__(self) -> None:
        self._now = 0.0

    def time(self) -> float:
        self._now += applied.SECONDS_BETWEEN
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> applied.Timer:
        raise AssertionError(f"{callback} waits for {delay} s, although a second has passed")


_PART = subscriptions.Subscription(kinds=("core/v1/pods", "core/v1/services"), own_node=True)


def _follow_part(data: bytes) -> str:
    """A client with a subscription that reports what it has applied: its map has only what is selected."""
    one = follower.Follower(
        "127.0.0.1:1", feed="pods", agent="fuzz", node="n1", subscription=_PART, reports_applied=True
    )
    acknowledger = applied.Acknowledger(_NoTime())
    one._acknowledger = acknowledger
    protocol = connection.Connection(connection.Role.CLIENT, max_frame_bytes=mutation.MAX_BYTES)
    protocol.send(one.hello)
    said: list[int] = []
    reached = 0
    content: dict[str, bytes] = {}
    try:
        for piece in mutation.pieces(data):
            protocol.receive_data(piece)
            while (message := protocol.next_event()) is not None:
                if isinstance(message, messages.ServerHello) and "positions" in message.features:
                    acknowledger.connected(said.append)
                for event in one._receive(message, now=0.0):
                    for update in event.updates if isinstance(event, differ.Batch) else ():
                        content.pop(update.key, None)
                        if update.value is not None:
                            content[update.key] = update.value
                one.applied()
                reached = max(reached, protocol.sequence)
                assert not said or said[-1] <= reached
    except client_errors.BadServer as error:
        raise errors.RemoteProtocolError(str(error)) from error
    finally:
        assert said == sorted(set(said))
    for key, value in content.items():
        assert subscriptions.Selector(_PART).selects(key)
        assert subscriptions.node_of(key, value) in (None, "n1")
    return f"{len(content)} keys, {len(said)} positions"


def _parts() -> list[bytes]:
    on_the_page = b"".join(step.data for step in vectors.SUBSCRIBED_SESSION if step.sender == "server")
    return [sessions.native_server_of_a_part(), sessions.native_server(), on_the_page]


def _restore_mirror(data: bytes) -> int:
    state = statefile.decode(data)
    known = differ.Differ()
    updates = [messages.Update(one.key, one.value, one.revision, 1) for one in state.entries]
    known.restore(updates, position=None, chunks=state.chunks)
    hello = known.resuming(messages.ClientHello("pods", "fuzz", features=frozenset({"chunk-digests"})))
    assert len(codec.encode(hello)) < frames.MAX_HELLO_FRAME_BYTES
    return len(known)


def _mirrors() -> list[bytes]:
    entries = [statefile.Entry(f"/{number}", b"x" * number, "1", "", number) for number in range(20)]
    position = statefile.Position(bytes(16), 1 << 60)
    return [statefile.encode(statefile.State("pods", at, 8, entries)) for at in (position, None)]


_CLIENT_LIMITS = decoder.Limits(message_bytes=mutation.MAX_BYTES, skipped_values=1 << 20)


def _typha_server_streams() -> list[bytes]:
    found = [wire.load("shared-frames/plain-hello-restart.bin") + wire.load("shared-frames/all-after-ack.bin")]
    for folder, pattern in (("server-to-client-odd", "*.bin"), ("streams", "*.server.bin")):
        found += [path.read_bytes()[:_MAX_SEED_BYTES] for path in sorted((wire.FOLDER / folder).glob(pattern))]
    return [stream for stream in found if stream]


def _follow_typha(data: bytes) -> int:
    protocol = typha.Connection(typha.Role.CLIENT, limits=_CLIENT_LIMITS)
    protocol.send_hello(
        typha_messages.ClientHello(
            syncer_type=typha_messages.SYNCER_TYPES[data[-1] % 2] if data else "",
            supports_decoder_restart=True,
            supported_compression_algorithms=("snappy",),
        )
    )
    received = 0
    try:
        for piece in mutation.pieces(data):
            protocol.receive_data(piece)
            while protocol.next_event() is not None:
                received += 1
            held = _CLIENT_LIMITS.message_bytes + snappy.CHUNK_BODY_BYTES + snappy.CHUNK_CONTENT_BYTES
            assert protocol.pending_bytes <= held
    except errors.RemoteProtocolError:
        assert protocol.state is typha.State.ERROR
        assert protocol.next_event() is None
        raise
    return received


def _decode_gob(data: bytes) -> int:
    bare = typha_codec.make_client_decoder(_CLIENT_LIMITS)
    received = 0
    for piece in mutation.pieces(data):
        bare.receive(piece)
        while bare.next_value() is not decoder.NEED_DATA:
            received += 1
        assert bare.pending_bytes <= _CLIENT_LIMITS.message_bytes + len(piece)
    return received


def _gob_values() -> list[bytes]:
    return [path.read_bytes()[:_MAX_SEED_BYTES] for path in sorted((wire.FOLDER / "messages").glob("*.first.gob"))]


def _read_chunks(data: bytes) -> int:
    reader = snappy.ChunkReader()
    total = 0
    for piece in mutation.pieces(data):
        reader.receive(piece)
        while (content := reader.next_content()) is not None:
            total += len(content)
    return total.bit_length()


def _chunks() -> list[bytes]:
    stream = wire.load("shared-frames/all-after-ack.bin")
    skippable = b"\x80\x03\x00\x00abc\xfe\x00\x00\x00"
    made = snappy.IDENTIFIER + snappy.compress(bytes(70_000) + bytes(range(256)) * 10) + skippable
    return [stream[:_MAX_SEED_BYTES], made, snappy.IDENTIFIER]


def _read_zstd(data: bytes) -> int:
    return len(frames.unpack_payload(frames.FLAG_ZSTD, data, max_payload_bytes=mutation.MAX_BYTES)).bit_length()


def _zstd_frames() -> list[bytes]:
    compressor = frames.make_compressor()
    return [compressor.compress(content) for content in (b"", b"\x91\x08", bytes(60_000), bytes(range(256)) * 100)]


# Between the processes.


def _ipc_messages(kinds: Any) -> list[bytes]:
    """One message of each type, with values of the right kinds."""
    made = []
    for kind in kinds.__args__:
        values = [_example(field.type) for field in msgspec.structs.fields(kind)]
        made.append(msgspec.msgpack.encode(kind(*values)))
    return made


def _example(kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _conforming(_example(arguments[0]), arguments[1])
    if origin is Literal:
        return arguments[0]
    if origin in (types.UnionType, Union):
        return _example(arguments[0])
    if origin is list:
        return [_example(arguments[0])] * 2
    if origin is tuple:
        return [_example(argument) for argument in arguments if argument is not ...]
    if origin is dict:
        return {_example(arguments[0]): _example(arguments[1])}
    if issubclass(kind, msgspec.Struct):
        return kind(*[_example(field.type) for field in msgspec.structs.fields(kind)])
    if issubclass(kind, enum.Enum):
        return next(iter(kind))
    return {str: "felix", int: 7, float: 1.5, bool: True, bytes: b"x"}[kind]


def _conforming(value: Any, meta: msgspec.Meta) -> Any:
    if meta.pattern is not None:
        return next(name for name in formats.NAMES if re.search(meta.pattern, name))
    if isinstance(value, list) and meta.min_length:
        return value[:1] * meta.min_length
    return value


def _for_hub(data: bytes) -> str:
    return type(ipc.FOR_HUB.decode(data)).__name__


def _for_worker(data: bytes) -> str:
    return type(ipc.FOR_WORKER.decode(data)).__name__


# What the API server sends.


@functools.cache
def _recorded_objects() -> tuple[tuple[syncers.Group, bytes], ...]:
    """One or two recorded objects of each kind, in both API groups, and of the kinds for older releases."""
    found: dict[tuple[syncers.Group, str], list[bytes]] = {}
    names = ("anp-ports", "anp-pods-subject", "banp-basic")
    older = [(repository.GOLDEN_RELEASES / "v3.31.7" / f"{name}.json").read_bytes() for name in names]
    scenarios = [msgspec.json.decode(data, type=corpus.Scenario) for data in older]
    for scenario in [*map(corpus.load, corpus.NAMES), *scenarios]:
        for item in scenario.objects_after:
            data = bytes(item)
            kept = found.setdefault((scenario.group, json.loads(data)["kind"]), [])
            if len(kept) < 2 and len(data) < _MAX_SEED_BYTES:
                kept.append(msgspec.json.format(data, indent=-1))
    return tuple((group, data) for (group, _), kept in found.items() for data in kept)


def _objects() -> list[bytes]:
    return [data for _, data in _recorded_objects()]


def _watch_lines() -> list[bytes]:
    lines = [b'{"type":"ADDED","object":' + data + b"}\n" for data in _objects()[::5]]
    annotations = b'{"k8s.io/initial-events-end":"true"}'
    bookmark = b'{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9","annotations":' + annotations + b"}}"
    details = b'{"retryAfterSeconds":1,"causes":[]}'
    status = b'{"kind":"Status","code":410,"reason":"Expired","message":"too old","details":' + details + b"}"
    lines += [b'{"type":"BOOKMARK","object":' + bookmark + b"}\n", b'{"type":"ERROR","object":' + status + b"}\n"]
    return [*lines, b"".join(lines[-3:])]


def _read_watch(data: bytes) -> str:
    splitter = decoding.LineSplitter(mutation.MAX_BYTES)
    said = ""
    for piece in mutation.pieces(data):
        for line in splitter.feed(piece):
            event = decoding.decode_line(line)
            said += f"{event.type[:1]}{event.envelope.is_sane}"
            if event.type == "BOOKMARK":
                said += str(decoding.ends_initial_events(event.raw))
            if event.type == "ERROR":
                said += str(decoding.decode_status(event.raw).says_expired)
    return said[:40]


def _pages() -> list[bytes]:
    items = _objects()
    pages = [
        b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"abc"},"items":['
        + b",".join(items[start : start + 3])
        + b"]}"
        for start in range(0, len(items), 20)
    ]
    return [
        *pages,
        b'{"kind":"Status","code":410,"reason":"Expired","message":"too large resource version"}',
        b"<html>",
    ]


def _read_page(data: bytes) -> str:
    status = decoding.decode_status(data)
    said = f"{status.says_expired}{status.says_version_too_large}"
    try:
        page = decoding.decode_page(data, _PODS)
    except decoding.InvalidInput:
        steps = decoding.split_page(data, _PODS)
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                page = ended.value
                break
    for item in page.items:
        said += str(decoding.decode_item(item).is_sane)
    return said[:60]


def _event(type: resources.ResourceType, data: bytes, envelope: decoding.Envelope) -> objects.ObjectEvent:
    metadata = envelope.metadata
    return objects.ObjectEvent(
        type,
        metadata.namespace,
        metadata.name,
        metadata.resource_version,
        data,
        envelope.api_version,
        envelope.kind,
        objects.Origin.EVENT,
    )


class _Converters:
    """The four feeds of Calico for one API group, and felix' projections for all older releases."""

    def __init__(self, group: syncers.Group) -> None:
        specs = syncers.specs(group)
        self.feeds = {spec.name: calico.CalicoFeed(spec, max_value_bytes=1 << 22) for spec in specs}
        for name in sorted(releases.PROJECTIONS):
            for _ in calico.Projection(self.feeds[syncers.FELIX], releases.BY_FEED[name]).seed():
                pass
        self.types = {source.kind: source.type for spec in specs for source in spec.sources}


@functools.cache
def _converters(group: syncers.Group) -> _Converters:
    return _Converters(group)


def _convert(data: bytes) -> str:
    """Adds an object to Calico's feeds and deletes it again."""
    envelope = decoding.decode_item(msgspec.Raw(data))
    if not envelope.is_sane:
        return "not sane"
    made = _converters(syncers.Group.V1 if "crd" in envelope.api_version else syncers.Group.V3)
    type = made.types.get(envelope.kind)
    if type is None:
        return "unknown kind"
    event = _event(type, data, envelope)
    said = envelope.kind
    for one in made.feeds.values():
        if type in (*one.types, *one.older_types):
            rejection = one.apply(event)
            assert rejection is None or rejection.reason != calico.DEFECT, rejection
            said += f" {rejection.reason if rejection else ''} {[_encoded(f.take()) for f in (one, *one.projections)]}"
            one.delete(event)
            for each in (one, *one.projections):
                _encoded(each.take())
    return said


def _encoded(batch: feed.Batch | None) -> int:
    """Encodes the updates for native clients and Typha's. Returns their number."""
    if batch is None or not batch.updates:
        return 0
    codec.decode(codec.encode_updates(0, len(batch.updates), batch.updates))
    for update in batch.updates:
        typha_codec.encode_update(update)
    return len(batch.updates)


_PODS = resources.ResourceType("", "v1", "pods")
_SOME_FIELDS: tuple[raw.FieldPath, ...] = (("metadata", "labels"), ("spec", "nodeName"), ("spec", "containers", "name"))


@functools.cache
def _raw_feeds() -> list[feed.RawFeed]:
    return [
        feed.RawFeed(raw.FeedSpec("raw", (raw.ResourceSpec(_PODS, fields),)), max_value_bytes=1 << 22)
        for fields in (None, _SOME_FIELDS)
    ]


def _convert_raw(data: bytes) -> str:
    envelope = decoding.decode_item(msgspec.Raw(data))
    if not envelope.is_sane:
        return "not sane"
    said = ""
    for one in _raw_feeds():
        event = _event(_PODS, data, envelope)
        rejection = one.apply(event)
        said += f" {rejection.reason if rejection else ''} {_encoded(one.take())}"
        one.delete(event)
        _encoded(one.take())
    return said


# Files.


@functools.cache
def _file(process: int) -> tuple[int, str]:
    """A file in memory, of its own for each process: its descriptor and path."""
    descriptor = os.memfd_create(f"fuzz-{process}", os.MFD_CLOEXEC)
    return descriptor, f"/proc/self/fd/{descriptor}"


def _written(data: bytes) -> str:
    descriptor, path = _file(os.getpid())
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)
    return path


def _read_feeds_file(data: bytes) -> int:
    return len(feeds_file.load(_written(data)))


def _read_yaml(data: bytes) -> int:
    found = [yamljson.to_json(data), *yamljson.documents(io.BytesIO(data))]
    for document in found:
        msgspec.json.decode(document.raw)
    return sum(len(document.notes) for document in found)


def _yaml_texts() -> list[bytes]:
    valid = [text.encode() for text, value in yaml_cases.table()["documents"].items() if value is not None]
    return [*_kubeconfigs()[:1], *_feeds_files(), *valid[::40]]


def _read_settings(data: bytes) -> int:
    loaded = loading.load(flags={}, environment={}, config_file=_written(data), strict=bool(len(data) % 2))
    return len(loaded.notices)


_INI = b"""[DEFAULT]
LogSeverityScreen = Info ; a comment
ServerPort: 5473
MaxConnections=`a;b`
PingIntervalSecs = "10"
PrometheusMetricsPort = 90\\
  93
"""
_KUBECONFIG = """apiVersion: v1
kind: Config
current-context: one
contexts: [{name: one, context: {cluster: one, user: me, namespace: a}}]
clusters:
- name: one
  cluster: {server: 'https://one.example:6443/', tls-server-name: kube, insecure-skip-tls-verify: true%s}
users:
- name: me
  user: {%s}
"""
_USERS = (
    "token: abc",
    "username: a, password: b",
    "tokenFile: /proc/self/status",
    "client-certificate-data: YWJj, client-key-data: YWJj",
)


def _kubeconfigs() -> list[bytes]:
    return [
        (_KUBECONFIG % (cluster, user)).encode()
        for cluster in ("", ", certificate-authority-data: YWJj", ", proxy-url: 'http://a:1'")
        for user in _USERS
    ]


def _read_kubeconfig(data: bytes) -> str:
    if b"exec" in data or b"auth-provider" in data or b"cmd" in data:
        return "would start what the file names"
    settings = {"KUBECONFIG": _written(data)}
    return str(credentials.load(settings).verify)


def _feeds_files() -> list[bytes]:
    return [(repository.ROOT / "docs/feeds.example.yaml").read_bytes()]


# What agents get.


class _KeyValue(msgspec.Struct):
    key: str
    value: msgspec.Raw


@functools.cache
def _feed_of_a_cluster() -> dict[str, bytes]:
    """Keys and values of all kinds."""
    names = (
        "mix-everything",
        "pod-dual-stack",
        "route-borrowed",
        "svc-slices",
        "hep-tiers",
        "np-not-icmp",
        "set-overlap",
    )
    steps = [
        changes for name in names for changes in felix_recordings.steps_of(felix_recordings.load("scenarios")[name])
    ]
    return {key: value for changes in steps for key, value in changes if value is not None}


@functools.cache
def _calculation() -> calculation.Calculation:
    made = calculation.Calculation("n1")
    for key, value in _feed_of_a_cluster().items():
        made.update(key, value)
    made.take()
    return made


def _calculate(data: bytes) -> str:
    """Sets a key of the felix feed for a node's agent, and sets it back."""
    given = msgspec.json.decode(data, type=_KeyValue)
    made = _calculation()
    refused = made.update(given.key, bytes(given.value))
    update, refusals = made.take()
    sections = [name for name in desired.SECTIONS if getattr(update, name)]
    made.update(given.key, _feed_of_a_cluster().get(given.key))
    made.take()
    return f"{refused is None} {len(refusals)} {sections} {len(update.members)}"


def _keys_and_values() -> list[bytes]:
    return [
        msgspec.json.encode(_KeyValue(key, msgspec.Raw(value if value[:1] == b"{" else b'"' + value + b'"')))
        for key, value in _feed_of_a_cluster().items()
    ]


def _all() -> Iterator[Target]:
    remote = (errors.RemoteProtocolError,)
    yield Target("native-server", serve, lambda: [sessions.native_client()], mutation.mutate_frames, remote, 8)
    yield Target("typha-server", serve, _typha_client_streams, mutation.mutate_gob, remote, 8)
    yield Target("native-client", _follow_native, lambda: [sessions.native_server()], mutation.mutate_frames, remote, 4)
    yield Target("native-resuming", _follow_resuming, _resumed_streams, mutation.mutate_frames, remote, 4)
    yield Target("native-part", _follow_part, _parts, mutation.mutate_frames, remote, 4)
    yield Target("typha-client", _follow_typha, _typha_server_streams, mutation.mutate_snappy, remote, 4)
    yield Target("gob", _decode_gob, _gob_values, mutation.mutate_gob, remote, 4)
    yield Target("snappy", _read_chunks, _chunks, mutation.mutate_bytes, remote, 2)
    yield Target("zstd", _read_zstd, _zstd_frames, mutation.mutate_bytes, remote, 2)
    engines = [
        engine for engine in tls.ENGINES if engine != tls.AUTO and importlib.util.find_spec(tls_links.NEEDED[engine])
    ]
    for engine in engines:
        run = functools.partial(tls_links.run, engine)
        yield Target(f"tls-{engine}", run, tls_links.seeds, mutation.mutate_bytes, (), 1)
        first = functools.partial(tls_links.first, engine)
        yield Target(f"tls-first-{engine}", first, tls_links.firsts, mutation.mutate_bytes, (), 8)
    undecodable = (msgspec.DecodeError, UnicodeDecodeError)
    for name, feed_one, kinds in (("to-hub", _for_hub, ipc.ToHub), ("to-worker", _for_worker, ipc.ToWorker)):
        yield Target(name, feed_one, functools.partial(_ipc_messages, kinds), mutation.mutate_msgpack, undecodable, 4)
    yield Target("mirror-file", _restore_mirror, _mirrors, mutation.mutate_msgpack, undecodable, 1)
    invalid = (decoding.InvalidInput,)
    yield Target("watch", _read_watch, _watch_lines, mutation.mutate_json, invalid, 4)
    yield Target("list", _read_page, _pages, mutation.mutate_json, invalid, 2)
    yield Target("calico", _convert, _objects, mutation.mutate_json, invalid, 6)
    yield Target("raw", _convert_raw, _objects, mutation.mutate_json, invalid, 2)
    yield Target("node-agent", _calculate, _keys_and_values, mutation.mutate_json, undecodable, 4)
    wrong = (sources.ConfigurationError,)
    yield Target("settings", _read_settings, lambda: [_INI], mutation.mutate_text, wrong, 1)
    yield Target("yaml", _read_yaml, _yaml_texts, mutation.mutate_text, (yamljson.YamlError,), 1)
    yield Target("feeds-file", _read_feeds_file, _feeds_files, mutation.mutate_text, wrong, 0.5)
    yield Target("kubeconfig", _read_kubeconfig, _kubeconfigs, mutation.mutate_text, (access.AccessError,), 0.02)


TARGETS = {target.name: target for target in _all()}


def outcome(target: Target, data: bytes) -> tuple[str, bool]:
    """Feeds an input. Returns how it ended, without what differs between similar inputs, and whether it was refused.

    Raises:
        Exception: an error that is not declared.
    """
    try:
        return str(target.feed(data)), False
    except target.declared as error:
        text = str(error)
        return type(error).__name__ + "".join(char for char in text[:60] if not char.isdigit()), True
