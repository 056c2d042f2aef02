"""The mirror: its map, its changes and its lifetime."""

import asyncio
import functools
import pathlib
import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients import follower, mirror, statefile, testing
from protocol import digest, messages
from tests.harness import worker_stand

FEEDS = {"pods": {"/a": b"1", "/b": b"2"}}


def show(changes: Sequence[mirror.Change]) -> list[str]:
    signs = {(False, True): "+", (True, True): "~", (True, False): "-"}
    return sorted(f"{signs[change.old is not None, change.new is not None]}{change.key}" for change in changes)


def make(server: testing.Server, on_change: mirror.OnChange | None = None) -> mirror.Mirror:
    return mirror.Mirror(server.address, feed="pods", agent="test", on_change=on_change)


async def until_equal(held: mirror.Mirror, server: testing.Server) -> None:
    """Polls, because neither end reports when the maps are equal."""
    expected = server.feeds["pods"].content
    deadline = time.monotonic() + 180
    while {key: entry.value for key, entry in held.items()} != expected:
        assert time.monotonic() < deadline, f"{held!r} did not become {expected!r}"
        await asyncio.sleep(0.005)
    assert held.digest == digest.state_digest(expected.items())


async def test_the_mirror_equals_the_servers_map() -> None:
    async with testing.Server(feeds=FEEDS) as server, make(server) as held:
        await held.wait_in_sync(timeout_seconds=180)
        assert dict(held) == {"/a": mirror.Entry(b"1", "1"), "/b": mirror.Entry(b"2", "2")}
        assert held.in_sync
        assert held.connected
        server.put("pods", "/a", b"")
        server.delete("pods", "/b")
        await until_equal(held, server)
        assert held["/a"].value == b""
        assert "/b" not in held


async def test_the_map_survives_an_outage() -> None:
    async with testing.Server(feeds=FEEDS) as server, make(server) as held:
        await held.wait_in_sync(timeout_seconds=180)
        await server.stop()
        deadline = time.monotonic() + 180
        while held.connected:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        assert not held.in_sync
        assert len(held) == 2
        assert held.last_disconnect is not None
        server.replace("pods", {"/b": b"2", "/c": b"3"})
        await server.start()
        await held.wait_in_sync(timeout_seconds=180)
        await until_equal(held, server)


async def test_callbacks_get_real_changes() -> None:
    seen: list[list[str]] = []
    async with (
        testing.Server(feeds=FEEDS) as server,
        make(server, lambda changes: seen.append(show(changes))) as held,
    ):
        await held.wait_in_sync(timeout_seconds=180)
        server.replace("pods", {"/b": b"22", "/c": b"3"})
        server.disconnect_all()
        await until_equal(held, server)
        server.resnapshot("pods")
        server.put("pods", "/d", b"4")
        await until_equal(held, server)
    assert seen == [["+/a", "+/b"], ["+/c", "-/a", "~/b"], ["+/d"]]


async def test_changes_are_merged_for_a_slow_consumer() -> None:
    async with testing.Server(feeds=FEEDS) as server, make(server) as held:
        await held.wait_in_sync(timeout_seconds=180)
        changes = held.changes()
        assert show(await anext(changes)) == ["+/a", "+/b"]
        server.put("pods", "/a", b"x")
        server.put("pods", "/a", b"1")
        server.put("pods", "/short-lived", b"")
        server.delete("pods", "/short-lived")
        server.put("pods", "/b", b"x")
        server.put("pods", "/b", b"3")
        server.put("pods", "/end", b"")
        await until_equal(held, server)
        [first, second] = sorted(await anext(changes))
        assert first == mirror.Change("/b", mirror.Entry(b"2", "2"), held["/b"])
        assert second == mirror.Change("/end", None, held["/end"])
        await changes.aclose()


async def test_a_new_revision_is_stored_but_not_reported() -> None:
    seen: list[list[str]] = []
    async with (
        testing.Server(feeds=FEEDS) as server,
        make(server, lambda changes: seen.append(show(changes))) as held,
    ):
        await held.wait_in_sync(timeout_seconds=180)
        server.put("pods", "/a", b"1")
        server.put("pods", "/z", b"1")
        await until_equal(held, server)
        assert held["/a"].revision == "3"
    assert seen == [["+/a", "+/b"], ["+/z"]]


async def test_a_callback_that_fails_ends_the_mirror() -> None:
    def fail(changes: Sequence[mirror.Change]) -> None:
        raise KeyError(f"{len(changes)} changes")

    async with testing.Server(feeds=FEEDS) as server:
        with pytest.raises(KeyError, match="2 changes"):
            async with make(server, fail) as held:
                await held.wait_in_sync(timeout_seconds=180)
        with pytest.raises(KeyError, match="2 changes"):
            async with make(server, fail) as held:
                await anext(held.changes())
        await server.wait_clients(0)


async def test_wait_in_sync_times_out(free_port: int) -> None:
    async with mirror.Mirror(f"127.0.0.1:{free_port}", feed="pods", agent="test") as held:
        with pytest.raises(TimeoutError):
            await held.wait_in_sync(timeout_seconds=0.2)
        assert held.last_disconnect is not None
        assert "cannot connect" in str(held.last_disconnect.error)


async def test_only_in_sync_counts_as_in_sync() -> None:
    async with testing.Server(feeds=FEEDS, status=messages.SyncStatus.RESYNC) as server, make(server) as held:
        await anext(held.changes())
        assert not held.in_sync
        server.set_status("pods", messages.SyncStatus.IN_SYNC)
        await held.wait_in_sync(timeout_seconds=180)


async def test_the_map_survives_the_loss_of_the_servers_backend() -> None:
    """For old clients and new ones, which are told that it may be old."""
    seen: list[str] = []
    async with (
        testing.Server(feeds=FEEDS) as server,
        make(server, lambda changes: seen.extend(show(changes))) as held,
    ):
        await held.wait_in_sync(timeout_seconds=180)
        server.set_status("pods", messages.SyncStatus.WAITING)
        async with make(server) as newcomer:
            deadline = time.monotonic() + 180
            while held.in_sync or len(newcomer) < 2:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.005)
            assert (newcomer.status, newcomer.in_sync, newcomer.connected) == (messages.SyncStatus.WAITING, False, True)
            assert (held.status, held.connected) == (messages.SyncStatus.WAITING, True)
            assert set(held) == set(newcomer) == {"/a", "/b"}
            server.set_status("pods", messages.SyncStatus.IN_SYNC)
            await held.wait_in_sync(timeout_seconds=180)
            await newcomer.wait_in_sync(timeout_seconds=180)
    assert seen == ["+/a", "+/b"]


async def test_a_mirror_runs_once_and_only_inside_its_block() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        held = make(server)
        with pytest.raises(RuntimeError, match="not running"):
            await held.wait_in_sync()
        async with held:
            await held.wait_in_sync(timeout_seconds=180)
        await server.wait_clients(0)
        with pytest.raises(RuntimeError, match="started only once"):
            async with held:
                pass


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.sampled_from([b"", b"1", b"2"])),
        st.tuples(st.just("delete"), st.sampled_from("abcd"), st.just(b"")),
        st.tuples(st.sampled_from(["resnapshot", "disconnect", "corrupt", "elsewhere"]), st.just(""), st.just(b"")),
    ),
    max_size=12,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_the_mirror_converges_after_any_sequence_of_failures(story: list[tuple[str, str, bytes]]) -> None:
    async def play() -> None:
        mine: dict[str, bytes] = {}

        def check(changes: Sequence[mirror.Change]) -> None:
            for key, old, new in changes:
                assert mine.get(key) == (None if old is None else old.value)
                assert old is None or new is None or old.value != new.value
                mine.pop(key, None)
                if new is not None:
                    mine[key] = new.value

        async with testing.Server(feeds=FEEDS) as server, make(server, check) as held:
            for action, key, value in story:
                content = server.feeds["pods"].content
                match action:
                    case "put":
                        server.put("pods", key, value)
                    case "delete" if key in content:
                        server.delete("pods", key)
                    case "resnapshot":
                        server.resnapshot("pods")
                    case "disconnect":
                        server.disconnect_all()
                    case "corrupt":
                        server.send_message("pods", messages.SnapshotBegin(1, 1, 1))
                        server.send_message("pods", messages.Status(1, messages.SyncStatus.IN_SYNC))
                    case "elsewhere":
                        server.replace("pods", {**content, "/elsewhere": value})
                        server.disconnect_all()
                await asyncio.sleep(0)
            await until_equal(held, server)
            assert mine == server.feeds["pods"].content

    asyncio.run(play())


async def test_a_mirror_begins_with_its_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pods"
    async with testing.Server(feeds={"pods": {"/a": b"1", "/b": b"2"}}) as server:
        async with mirror.Mirror(server.address, feed="pods", agent="t", state_file=file) as first:
            await first.wait_in_sync(timeout_seconds=180)
            assert not first.restored
        assert first.state_file_error is None
        address = server.address
    async with mirror.Mirror(address, feed="pods", agent="t", state_file=file) as alone:
        assert (alone.restored, alone.in_sync, alone.connected) == (True, False, False)
        assert {key: entry.value for key, entry in alone.items()} == {"/a": b"1", "/b": b"2"}
        async for changes in alone.changes():
            assert {change.key for change in changes} == {"/a", "/b"}
            break
    seen: list[mirror.Change] = []
    async with testing.Server(feeds={"pods": {"/a": b"1", "/b": b"3", "/c": b""}}) as server:
        async with mirror.Mirror(
            server.address, feed="pods", agent="t", state_file=file, on_change=seen.extend
        ) as again:
            await again.wait_in_sync(timeout_seconds=180)
        [hello] = server.hellos
        assert hello.chunk_digests is not None
        assert hello.resume is not None
    assert {(change.key, change.old is None) for change in seen} == {("/b", False), ("/c", True)}


async def test_a_mirror_tells_of_every_event_and_ends_by_an_exception_of_its_callback() -> None:
    events: list[follower.Event] = []

    def note(event: follower.Event) -> None:
        events.append(event)
        if isinstance(event, follower.Batch) and any(update.key == "/c" for update in event.updates):
            raise LookupError("a callback's fault")

    async def break_it(server: testing.Server) -> None:
        async with mirror.Mirror(server.address, feed="pods", agent="t", on_event=note) as held:
            await held.wait_in_sync(timeout_seconds=10)
            ended = asyncio.create_task(held.wait_ended())
            server.disconnect_all()
            await server.wait_hellos(2, timeout_seconds=30)
            server.put("pods", "/c", b"3")
            await ended

    async with testing.Server(feeds={"pods": {"/a": b"1"}}) as server:
        with pytest.raises(LookupError, match="a callback's fault"):
            await break_it(server)
    kinds = [type(event) for event in events]
    first = [follower.Connected, follower.Batch, follower.StatusChanged, follower.Disconnected]
    assert kinds[:4] == first
    assert kinds.count(follower.Connected) == 2


async def test_a_file_that_is_broken_or_cannot_be_written_is_told_of(tmp_path: pathlib.Path) -> None:
    (tmp_path / "broken").write_bytes(b"nonsense")
    async with testing.Server(feeds={"pods": {"/a": b"1"}}) as server:
        async with mirror.Mirror(server.address, feed="pods", agent="t", state_file=tmp_path / "broken") as one:
            assert (one.restored, len(one)) == (False, 0)
            assert type(one.state_file_error) is ValueError
            await one.wait_in_sync(timeout_seconds=180)
        assert statefile.read(tmp_path / "broken", "pods") is not None
        async with mirror.Mirror(server.address, feed="pods", agent="t", state_file=tmp_path / "no" / "map") as other:
            await other.wait_in_sync(timeout_seconds=180)
        assert isinstance(other.state_file_error, FileNotFoundError)


async def test_the_file_is_written_now_and_then(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pods"

    def is_saved(value: bytes) -> bool:
        return file.exists() and value in file.read_bytes()

    async with (
        testing.Server(feeds={"pods": {"/a": b"1"}}) as server,
        mirror.Mirror(server.address, feed="pods", agent="t", state_file=file, save_interval_seconds=0.01) as one,
    ):
        await one.wait_in_sync(timeout_seconds=180)
        for value in (b"2", b"3"):
            server.put("pods", "/a", value)
            await worker_stand.eventually(functools.partial(is_saved, value))
