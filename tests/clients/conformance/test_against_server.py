"""The kit finds nothing wrong with our service, and finds faults that are put into a server."""

import operator
import pathlib
from collections.abc import Callable, Iterator

import pytest

from clients import testing
from clients.conformance import against_server, report
from protocol import messages, subscriptions
from protocol.native import codec, connection, frames
from tests.harness import served, worker_stand
from typha.worker import channel, client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PATIENCE_SECONDS = 60.0


async def test_our_service_keeps_the_rules(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        served.serving(cluster, "--workers", "1", TYPHA_SERVERPINGINTERVALSECS="1") as running,
    ):
        options = against_server.Options(await running.address(), served.FEED, PATIENCE_SECONDS)
        cluster.put(*(f"large-{number}" for number in range(300)), padding="x" * 10_000)  # more than a socket takes
        cluster.put("here", node="n1")
        cluster.put("there", node="n2")
        results = await against_server.run_checks(options)
    assert [line for line in report.as_lines(results) if not line.startswith("pass")] == [
        f"{len(results)} pass, 0 fail, 0 n/a"
    ]


def _wrong_digest(original: Callable[..., Iterator[messages.Message]]) -> Callable[..., Iterator[messages.Message]]:
    def snapshot(self: testing.Feed) -> Iterator[messages.Message]:
        for message in original(self):
            if isinstance(message, messages.SnapshotEnd):
                yield messages.SnapshotEnd(message.sequence, message.keys, message.digest ^ 1)
            else:
                yield message

    return snapshot


def _no_status(original: Callable[..., Iterator[messages.Message]]) -> Callable[..., Iterator[messages.Message]]:
    def snapshot(self: testing.Feed) -> Iterator[messages.Message]:
        return (message for message in original(self) if not isinstance(message, messages.Status))

    return snapshot


@pytest.mark.parametrize(("rule", "fault"), [("V2", _wrong_digest), ("O5", _no_status)])
async def test_faulty_snapshots_are_found(
    rule: str, fault: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing.Feed, "snapshot", fault(testing.Feed.snapshot))
    async with testing.Server(feeds={"workloads": {"/k": b"v"}}) as server:
        options = against_server.Options(server.address, patience_seconds=3.0, snapshot_seconds=2.0)
        results = await against_server.run_checks(options, only=rule)
    assert rule in [result.rules[0] for result in results if result.outcome is report.Outcome.FAIL]


async def test_other_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that puts every feature in force, compresses what it likes, and takes any length."""

    def everything(hello: messages.ServerHello) -> bytes:
        content = {"version": 1, "feed": hello.feed, "incarnation": bytes(16), "features": ["zstd", "telepathy"]}
        return codec._pack((2, content))

    monkeypatch.setitem(codec._ENCODERS, messages.ServerHello, everything)
    monkeypatch.setattr(frames, "MAX_HELLO_FRAME_BYTES", 1 << 30)
    monkeypatch.setattr(connection.Connection, "receive_eof", lambda self: None)
    async with testing.Server(feeds={"workloads": {"/k": b"v"}}) as server:
        options = against_server.Options(server.address, patience_seconds=3.0)
        with pytest.raises(report.Broken, match="E2"):
            await against_server.run_checks(options)
        monkeypatch.undo()
        monkeypatch.setattr(frames, "MAX_HELLO_FRAME_BYTES", 1 << 30)
        results = await against_server.run_checks(options, only="F2")
    assert "G1" in [result.rules[0] for result in results if result.outcome is report.Outcome.FAIL]


@pytest.mark.parametrize("fault", ["", "kept", "sequence"])
async def test_faults_in_resuming_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service in this process: right, with all chunks kept, and with a status that claims another sequence."""
    if fault == "kept":
        monkeypatch.setattr(operator, "eq", lambda *_: True)
    if fault == "sequence":
        told = channel.WorkerChannel.present
        monkeypatch.setattr(channel.WorkerChannel, "present", lambda one: _of_the_future(told(one)))
    async with worker_stand.WorkerStand(worker_stand.FAST).running() as stage:
        stage.put(*(worker_stand.pod(f"p{number}", "x" * 500) for number in range(1000)))
        stage.in_sync()
        options = against_server.Options("{}:{}".format(*stage.address), worker_stand.FEED, patience_seconds=10.0)
        results = [
            result for rule in ("R3", "R5", "R6") for result in await against_server.run_checks(options, only=rule)
        ]
    failed = {result.rules[0] for result in results if result.outcome is not report.Outcome.PASS}
    assert failed == {"": set(), "kept": {"O3"}, "sequence": {"O11"}}[fault]
    assert len(results) >= 6


def _of_the_future(notice: client.StatusNotice | None) -> client.StatusNotice | None:
    if notice is None:
        return None
    frame = frames.pack_frame(codec.encode(messages.Status(notice.sequence + 1, notice.status)))
    return notice._replace(frame=memoryview(frame))


@pytest.mark.parametrize("is_faulty", [False, True])
async def test_faults_in_subscriptions_are_found(is_faulty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service in this process: right, and with pods that all nodes get."""
    if is_faulty:
        monkeypatch.setattr(subscriptions, "node_of", lambda *_: None)
    async with worker_stand.WorkerStand(worker_stand.FAST).running() as stage:
        stage.put(*(worker_stand.pod(f"p{number}", {"nodeName": f"n{number % 3}"}) for number in range(30)))
        stage.in_sync()
        options = against_server.Options("{}:{}".format(*stage.address), worker_stand.FEED, patience_seconds=10.0)
        results = await against_server.run_checks(options, only="S3")
    failed = {result.rules[0] for result in results if result.outcome is not report.Outcome.PASS}
    assert failed == ({"S3"} if is_faulty else set())


async def test_no_server() -> None:
    with pytest.raises(report.Broken, match="no connection"):
        await against_server.run_checks(against_server.Options("127.0.0.1:1"))
