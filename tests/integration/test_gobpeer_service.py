"""Interoperability with Go's encoding/gob and snappy: Go clients of the service, and a Go server for `typha watch`."""

import asyncio
import contextlib
import json
import sys

import pytest

from tests.harness import go_client
from tests.harness.worker_stand import WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage, open_stage

pytestmark = pytest.mark.go
__all__ = ["open_stage"]  # a fixture

WATCH = ("-c", "from typha.cli import watch; watch.watch()")
FLAGS = {"snappy": (), "plain": ("-no-restart",), "restart-without-snappy": ("-no-snappy",)}


def follow(gobpeer: str, stage: WorkerStand, *flags: str) -> contextlib.AbstractAsyncContextManager[go_client.GoClient]:
    """A Go client of a stage. It fails if no complete message arrives for 5 s."""
    host, port = stage.address
    return go_client.following(gobpeer, f"{host}:{port}", "felix", "-read-timeout=5s", *flags)


@pytest.mark.parametrize("variant", FLAGS)
async def test_go_clients_have_the_map_during_churn_and_when_they_come_late(
    gobpeer: str, open_stage: OpenStage, variant: str
) -> None:
    stage = await open_stage(feed_name="felix")
    stage.put(*(pod(f"p{number}", "x" * number) for number in range(333)))
    async with follow(gobpeer, stage, *FLAGS[variant]) as early:
        await eventually(lambda: early.seen.count("Ping") >= 2)
        assert early.entries == {}
        stage.in_sync()
        native = await stage.subscribe()
        for number in range(60):
            stage.put(pod(f"p{number % 11}", number, version=number + 10), pod(f"n{number}", "é"))
            if number % 3 == 0:
                stage.delete(f"p{100 + number}")
            if number == 30:
                stage.put(pod("large", "l" * 700_000))
            await asyncio.sleep(0)
        await stage.converged(native)
        await eventually(lambda: early.entries == stage.content and early.statuses == [2])
        async with follow(gobpeer, stage, *FLAGS[variant]) as late:
            await eventually(lambda: late.entries == stage.content and late.statuses == [2])
            stage.delete("large")
            await eventually(lambda: early.entries == late.entries == stage.content)
            await eventually(lambda: late.seen.count("Ping") >= 2)
    await eventually(lambda: stage.disconnects == {"client-closed": 2})


async def test_a_go_client_of_a_release_that_is_not_served_is_held_without_an_answer(
    gobpeer: str, open_stage: OpenStage
) -> None:
    stage = await open_stage(feed_name="felix")
    stage.in_sync()
    async with follow(gobpeer, stage, "-release=v3.28.5") as client:
        await eventually(lambda: stage.disconnects == {"unsupported-version": 1})
        assert len(stage.server.connections.closing) == 1
        await eventually(lambda: client.seen == ["error"])


async def test_a_go_client_and_typha_watch_print_the_same(gobpeer: str, open_stage: OpenStage) -> None:
    stage = await open_stage(feed_name="felix")
    stage.put(*(pod(f"p{number}", number) for number in range(20)))
    stage.in_sync()
    host, port = stage.address
    arguments = ("--feed", "felix", "--protocol", "typha", "--json", "--until-in-sync")
    async with go_client.running(sys.executable, *WATCH, f"{host}:{port}", *arguments) as watch:
        output, _ = await watch.communicate()
    assert {(line := json.loads(text))["key"]: line["value"].encode() for text in output.splitlines()} == stage.content
    async with follow(gobpeer, stage) as client:
        await eventually(lambda: client.entries == stage.content)


async def test_typha_watch_follows_a_server_in_go(gobpeer: str) -> None:
    async with go_client.running(gobpeer, "server", "-keys=250") as server:
        address = (await go_client.read_line(server))["address"]
        async with go_client.running(
            sys.executable, *WATCH, address, "--feed", "felix", "--protocol", "typha", "--json"
        ) as watch:
            entries: dict[str, str] = {}
            lines = [await go_client.read_line(watch) for _ in range(250)]
            entries.update({line["key"]: line["value"] for line in lines})
            assert await go_client.read_line(watch) == {"status": "in-sync"}
            assert (len(entries), entries["/calico/v1/config/key-00007"]) == (250, "value 1 of 7")
            changed, deleted = await go_client.read_line(watch), await go_client.read_line(watch)
            assert (changed["key"], changed["value"]) == ("/calico/v1/config/key-00001", "value 2 of 1")
            assert (deleted["key"], deleted["update_type"]) == ("/calico/v1/config/key-00000", 3)
            assert await go_client.read_line(watch) == {"status": "resync"}
        heard = [await go_client.read_line(server) for _ in range(4)]
    assert [line["msg"] for line in heard] == ["ClientHello", "ACK", "ACK", "Pong"]
    assert heard[0]["info"] == "typha-watch"
