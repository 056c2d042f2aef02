"""Interoperability with Go's encoding/gob and snappy: each side reads what the other writes, in both roles."""

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import messages as common
from protocol.typha import codec, connection, encoder, messages, timestamps
from tests.harness import strategies

pytestmark = pytest.mark.go

CLIENT, SERVER = connection.Role.CLIENT, connection.Role.SERVER
TIMEOUT_SECONDS = 180.0
PING_NANOSECONDS = 1_700_000_000_123_456_789
SNAPSHOT = [
    common.Update(f"/calico/v1/config/key-{number}", b"%d " % number * 300, str(number), 1, str(number), number)
    for number in range(250)
]
DELTA = [
    common.Update("/calico/v1/config/key-1", b"changed", "1001", 2),
    common.Update("/calico/v1/config/key-2", None, "1002", 3),
    common.Update("/calico/v1/config/large", bytes(range(256)) * 2000, "1003", 1),
]

Pairs = dict[str, tuple[bytes, str, str, int, int]]


def as_map(updates: list[common.Update]) -> Pairs:
    """The map of a client after these updates."""
    held: Pairs = {}
    for update in updates:
        if update.value is None:
            held.pop(update.key, None)
        else:
            held[update.key] = (
                update.value,
                update.revision,
                update.v3_resource_version,
                update.ttl,
                update.update_type,
            )
    return held


def printed_map(lines: list[dict[str, Any]]) -> Pairs:
    return {
        line["key"]: (
            base64.b64decode(line["value"]),
            line["revision"],
            line["v3ResourceVersion"],
            line["ttl"],
            line["type"],
        )
        for line in lines
    }


def json_lines(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def go(gobpeer: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([gobpeer, *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Peer:
    """The Python end of a connection, on a blocking socket."""

    def __init__(self, plain_socket: socket.socket, ours: connection.Connection) -> None:
        plain_socket.settimeout(TIMEOUT_SECONDS)
        self.socket = plain_socket
        self.ours = ours

    def receive(self) -> messages.Message | None:
        """Receive the next message; None at the end."""
        while True:
            message = self.ours.next_event()
            self.socket.sendall(self.ours.data_to_send())
            if message is not None:
                return message
            data = self.socket.recv(65_536)
            if not data:
                self.ours.receive_eof()
                return None
            self.ours.receive_data(data)


def serve(gobpeer: str, *flags: str, syncer_type: str = "felix", made_for: list[str]) -> list[dict[str, Any]]:
    """Serve a Go client from shared frames. Appends the wire format to `made_for`, and returns the client's output."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_SECONDS)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with go(gobpeer, "client", address, syncer_type, "-read-timeout=10s", *flags) as process:
            accepted, _ = listener.accept()
            with accepted:
                peer = Peer(accepted, connection.Connection(SERVER))
                hello = peer.receive()
                assert isinstance(hello, messages.ClientHello)
                assert (hello.feed, hello.hostname) == (syncer_type or "felix", "gobpeer-host")
                assert connection.refusal(hello, messages.SYNCER_TYPES) is None
                wire_format = peer.ours.accept(version="ours", connection_id=7)
                made_for.append(wire_format)
                accepted.sendall(peer.ours.data_to_send())
                if wire_format == encoder.SNAPPY:
                    assert peer.receive() == messages.Ack()
                    accepted.sendall(peer.ours.data_to_send())
                for frame in FRAMES[wire_format]:
                    accepted.sendall(frame)
                assert peer.receive() == messages.Pong(timestamps.from_unix_nanoseconds(PING_NANOSECONDS))
                for frame in LATER_FRAMES[wire_format]:
                    accepted.sendall(frame)
                output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
                assert peer.receive() is None
            assert process.returncode == 0, output
            return json_lines(output)


def frames_of(made: encoder.TyphaEncoder) -> list[bytes]:
    """A ping as for a held client, a snapshot in two chunks, and a first status."""
    return [
        made.make_ping(PING_NANOSECONDS),
        made.snapshot_begin(250, keys=250, chunks=2),
        made.snapshot_chunk(0, 0, SNAPSHOT[:210]),
        made.snapshot_chunk(1, 0, SNAPSHOT[210:]),
        made.snapshot_end(250, keys=250, digest=0),
        made.status(250, common.SyncStatus.RESYNC).data,
    ]


def later_frames_of(made: encoder.TyphaEncoder) -> list[bytes]:
    return [*(frame.data for frame in made.updates(250, DELTA)), made.status(253, common.SyncStatus.IN_SYNC).data]


ENCODERS = [encoder.TyphaEncoder(compress=compress) for compress in (True, False)]
FRAMES = {made.name: frames_of(made) for made in ENCODERS}
LATER_FRAMES = {made.name: later_frames_of(made) for made in ENCODERS}
"""Encoded once, and sent to every client below."""


@pytest.mark.parametrize(
    ("flags", "wire_format"),
    [
        ([], encoder.SNAPPY),
        (["-no-restart"], encoder.PLAIN),
        (["-no-snappy"], encoder.PLAIN),
        (["-no-restart", "-no-snappy"], encoder.PLAIN),
    ],
    ids=["snappy", "no-restart", "no-snappy", "neither"],
)
@pytest.mark.parametrize("syncer_type", ["", *messages.SYNCER_TYPES])
def test_a_go_client_is_served(gobpeer: str, syncer_type: str, flags: list[str], wire_format: str) -> None:
    made_for: list[str] = []
    lines = serve(gobpeer, *flags, "-map", "-until-in-sync", syncer_type=syncer_type, made_for=made_for)
    assert made_for == [wire_format]
    assert printed_map(lines) == as_map([*SNAPSHOT, *DELTA])


def test_a_go_client_receives_all_messages_in_order(gobpeer: str) -> None:
    lines = serve(gobpeer, "-until-in-sync", made_for=[])
    assert [line["msg"] for line in lines] == [
        *("ServerHello", "DecoderRestart", "Ping", "KVs", "KVs", "KVs", "KVs", "SyncStatus", "KVs", "KVs", "SyncStatus")
    ]
    assert lines[0] == {
        "msg": "ServerHello",
        "version": "ours",
        "syncerType": "felix",
        "nodeResources": True,
        "connID": 7,
    }
    assert lines[2]["unixNano"] == PING_NANOSECONDS
    assert [len(line["updates"]) for line in lines if line["msg"] == "KVs"] == [100, 100, 10, 40, 2, 1]
    assert [line["status"] for line in lines if line["msg"] == "SyncStatus"] == [1, 2]


@pytest.mark.parametrize(("release", "is_modern"), [("v3.31.7", False), ("v3.32.1", True)])
def test_the_hello_of_a_go_client_tells_its_release(gobpeer: str, release: str, is_modern: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with go(gobpeer, "client", address, "felix", f"-release={release}") as process:
            accepted, _ = listener.accept()
            with accepted:
                hello = Peer(accepted, connection.Connection(SERVER)).receive()
            assert isinstance(hello, messages.ClientHello)
            assert (hello.version, hello.supports_modern_policy_keys) == (release, is_modern)
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 1
    assert json_lines(output)[-1] == {"error": "the server closed the connection"}


@pytest.mark.parametrize("takes_snappy", [True, False])
def test_our_connection_follows_a_go_server(gobpeer: str, takes_snappy: bool) -> None:
    with go(gobpeer, "server", "-keys=250") as process:
        assert process.stdout is not None
        host, _, port = json.loads(process.stdout.readline())["address"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as plain_socket:
            ours = connection.Connection(CLIENT)
            hello = messages.ClientHello(
                hostname="ours",
                info="test",
                version="1",
                syncer_type="bgp",
                supports_decoder_restart=takes_snappy,
                supported_compression_algorithms=("snappy",),
                supports_modern_policy_keys=True,
                client_connection_id=2**64 - 1,
            )
            ours.send_hello(hello)
            peer = Peer(plain_socket, ours)
            said: list[messages.Message] = []
            statuses = 0
            while statuses < 3:
                message = peer.receive()
                assert message is not None
                said.append(message)
                statuses += isinstance(message, messages.SyncStatus)
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    held = as_map([update for message in said if isinstance(message, messages.KeyValues) for update in message.updates])
    assert len(held) == 249
    assert held["/calico/v1/config/key-00001"] == (b"value 2 of 1", "2001", "1", 1_000_000_000, 2)
    assert held["/calico/v1/config/key-00249"] == (b"value 1 of 249", "1249", "249", 249_000_000_000, 1)
    assert len([message for message in said if isinstance(message, messages.DecoderRestart)]) == 2 * takes_snappy
    heard = json_lines(output)
    assert heard[0] == {
        "msg": "ClientHello",
        "hostname": "ours",
        "info": "test",
        "version": "1",
        "syncerType": "bgp",
        "restart": takes_snappy,
        "modernPolicyKeys": True,
        "algorithms": ["snappy"],
        "connID": 2**64 - 1,
    }
    acks = [{"msg": "ACK"}] * (2 * takes_snappy)
    assert heard[1:] == [*acks, {"msg": "Pong", "pingUnixNano": 1_700_000_000_000_000_123}]


def go_decodes(gobpeer: str, data: bytes) -> list[dict[str, Any]]:
    done = subprocess.run([gobpeer, "decode"], input=data, stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-500:]
    return json_lines(done.stdout)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(strategies.updates, max_size=6), min_size=1, max_size=20))
def test_go_reads_any_updates(gobpeer: str, batches: list[list[common.Update]]) -> None:
    data = b"".join(codec.encode_key_values([codec.encode_update(update) for update in updates]) for updates in batches)
    printed = go_decodes(gobpeer, codec.SERVER.definitions + data)
    for line, updates in zip(printed, batches, strict=True):
        for read, update in zip(line["updates"], updates, strict=True):
            assert base64.b64decode(read["value"] or "") == (update.value or b"")
            assert (read["key"], read["revision"]) == (update.key, update.revision)
            assert (read["v3ResourceVersion"], read["ttl"], read["type"]) == (
                update.v3_resource_version,
                update.ttl,
                update.update_type,
            )


def test_go_reads_every_message_of_a_client(gobpeer: str) -> None:
    said: list[messages.Message] = [
        messages.ClientHello(hostname="a", supported_compression_algorithms=("snappy", "", "x")),
        messages.Ack(),
        messages.Pong(timestamps.from_unix_nanoseconds(5)),
        messages.Ack(),
    ]
    data = b"".join(codec.encode(message, types=codec.CLIENT) for message in said)
    printed = go_decodes(gobpeer, codec.CLIENT.definitions + data)
    assert [line["msg"] for line in printed] == ["ClientHello", "ACK", "Pong", "ACK"]
    assert printed[0]["algorithms"] == ["snappy", "", "x"]
    assert printed[2]["pingUnixNano"] == 5
