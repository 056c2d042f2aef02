"""Tests of loadtest.apiserver.faults: each fault as a client sees it."""

import asyncio
import json
import time

import aiohttp
import pytest

from loadtest.apiserver import faults, resources
from loadtest.apiserver.errors import Expired
from loadtest.apiserver.faults import Fault, FaultKind, Rules
from loadtest.apiserver.simulator import Simulator
from tests.harness.apiserver_client import PATIENCE_SECONDS, Api, until
from tests.loadtest.apiserver.conftest import pod

PODS = "/api/v1/pods"
BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionResetError)


async def test_close_ends_streams_cleanly(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.inject(Fault(kind=FaultKind.CLOSE))
        assert await watch.line() == b""


async def test_drop_resets_the_streams_of_its_type_only(api: Api, simulator: Simulator) -> None:
    version = simulator.store.version
    nodes_path = resources.NODES.path
    async with (
        api.watch(PODS, resourceVersion=version) as pods,
        api.watch(nodes_path, resourceVersion=version) as nodes,
    ):
        simulator.inject(Fault(kind=FaultKind.DROP, resource="pods"))
        with pytest.raises(BROKEN):
            await pods.line()
        simulator.store.create(resources.NODES, {"metadata": {"name": "n1"}})
        assert await nodes.names(1) == ["ADDED n1"]
    assert simulator.counters.watches_ended["abort"] == 1


async def test_a_drop_in_the_middle_of_a_line(simulator: Simulator) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    path = f"{PODS}?watch=1&resourceVersion={simulator.store.version}"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await reader.readuntil(b"\r\n\r\n")
        simulator.store.create(resources.PODS, pod("whole"))
        simulator.inject(Fault(kind=FaultKind.DROP_MID_LINE))
        rest = await reader.read()
    writer.close()
    await writer.wait_closed()
    whole, _, half = rest.partition(b"}\n")
    assert b'"name":"whole"' in whole
    assert half.startswith(b'{"type":')
    assert not half.rstrip(b"\r\n").endswith((b"}", b"0"))


async def test_broken_json_does_not_end_the_stream(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.inject(Fault(kind=FaultKind.BROKEN_JSON))
        with pytest.raises(json.JSONDecodeError):
            await watch.event()
        simulator.store.create(resources.PODS, pod("after"))
        assert await watch.names(1) == ["ADDED after"]


async def test_lost_events_stay_lost_after_resuming(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.inject(Fault(kind=FaultKind.LOSE_EVENTS, count=2))
        for name in ("a", "b", "c"):
            simulator.store.create(resources.PODS, pod(name))
        kind, value = await watch.event()
        assert (kind, value["metadata"]["name"]) == ("ADDED", "c")
        with pytest.raises(BROKEN):
            await watch.line()
    async with api.watch(PODS, resourceVersion=value["metadata"]["resourceVersion"]) as watch:
        simulator.store.create(resources.PODS, pod("d"))
        assert await watch.names(1) == ["ADDED d"]


async def test_half_open_streams_are_silent(api: Api, simulator: Simulator) -> None:
    query: dict[str, str | int] = {"resourceVersion": simulator.store.version, "timeoutSeconds": 1}
    async with api.watch(PODS, **query) as frozen:
        simulator.inject(Fault(kind=FaultKind.HALF_OPEN))
        async with api.watch(PODS, resourceVersion=query["resourceVersion"]) as later:
            simulator.store.create(resources.PODS, pod("new"))
            assert await later.names(1) == ["ADDED new"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(frozen.response.content.readline(), 1.3)
    await until(lambda: not simulator.counters.watches_by_resource())


async def test_delay(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.DELAY, verb="LIST", delay_seconds=0.2, count=1))
    begin = time.monotonic()
    assert (await api.get(PODS))[0] == 200
    assert time.monotonic() - begin >= 0.2
    assert simulator.rules.active(time.monotonic()) == []


async def test_too_many_requests_for_a_number_of_requests(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.ERROR, code=429, retry_after_seconds=3, count=2))
    for _ in range(2):
        async with api.session.get(api.url + PODS) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "3")
            assert (await response.json())["reason"] == "TooManyRequests"
    assert (await api.get(PODS))[0] == 200


async def test_server_errors_for_a_while(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.ERROR, code=503, resource="core/v1/pods", duration_seconds=600))
    assert (await api.get(PODS))[0] == 503
    assert (await api.get(PODS, watch="true"))[0] == 503
    assert (await api.get(resources.NODES.path))[0] == 200
    assert simulator.rules.active(time.monotonic())
    assert not simulator.rules.active(time.monotonic() + 600)
    assert (await api.get(PODS))[0] == 200


async def test_forbidden_until_cleared(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.ERROR, code=403, resource="pods", verb="LIST"))
    status, refusal = await api.get(PODS)
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert 'cannot list resource "pods"' in refusal["message"]
    simulator.clear_faults()
    assert (await api.get(PODS))[0] == 200


async def test_broken_lists(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.BROKEN_LIST, count=1))
    with pytest.raises(json.JSONDecodeError):
        await api.get(PODS)
    assert (await api.get(PODS))[0] == 200


@pytest.mark.parametrize("path", [PODS, resources.WIDGETS.path])
async def test_bad_objects_in_lists(api: Api, simulator: Simulator, path: str) -> None:
    simulator.store.install(resources.WIDGETS)
    simulator.inject(Fault(kind=FaultKind.BAD_OBJECT, count=1))
    (_, bad), (_, good) = [await api.get(path) for _ in range(2)]  # Python's decoder takes half a surrogate pair
    assert bad["items"].pop(0)["metadata"]["name"] == "bad"
    assert bad["items"] == good["items"]


async def test_bad_events_do_not_end_the_stream(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.inject(Fault(kind=FaultKind.BAD_EVENT))
        simulator.store.create(resources.PODS, pod("whole"))
        assert await watch.names(2) == ["MODIFIED bad", "ADDED whole"]


async def test_lists_without_end(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.ENDLESS_LIST))
    tokens, token = set(), ""
    for _ in range(5):
        _, page = await api.get(PODS, limit=3, **({"continue": token} if token else {}))
        assert len(page["items"]) == 3
        token = page["metadata"]["continue"]
        tokens.add(token)
    assert len(tokens) == 5
    simulator.clear_faults()
    assert (await api.get(PODS, **{"continue": token}))[0] == 400


async def test_compressed_lists(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.COMPRESSED, count=1))
    encodings = []
    for _ in range(2):
        async with api.session.get(api.url + PODS, headers={"Accept-Encoding": "identity"}) as response:
            encodings.append(response.headers.get("Content-Encoding"))
            assert len((await response.json())["items"]) == 10
    assert encodings == ["gzip", None]


async def test_dripping_lists(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.DRIP, delay_seconds=0.001))
    async with asyncio.timeout(PATIENCE_SECONDS), api.session.get(api.url + PODS) as response:
        received = b""
        while not received.endswith(b" " * 20):
            received += await response.content.readany()
    assert received.startswith(b'{"kind":"PodList"')


async def test_compaction_makes_every_resumption_too_old(api: Api, simulator: Simulator) -> None:
    version = simulator.store.version
    async with api.watch(PODS, resourceVersion=version) as watch:
        simulator.inject(Fault(kind=FaultKind.COMPACT))
        with pytest.raises(BROKEN):
            await watch.line()
    async with api.watch(PODS, resourceVersion=version) as watch:
        assert (await watch.event())[1]["code"] == 410
    assert (await api.get(PODS))[1]["metadata"]["resourceVersion"] == str(version + 1)


async def test_a_restart_refuses_connections_and_comes_back_at_the_same_address(api: Api, simulator: Simulator) -> None:
    url = simulator.url
    simulator.store.create(resources.PODS, pod("new"))
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.inject(Fault(kind=FaultKind.RESTART, duration_seconds=1.5))
        with pytest.raises(ValueError, match="under way"):
            simulator.inject(Fault(kind=FaultKind.RESTART))
        with pytest.raises(BROKEN):
            await watch.line()
    with pytest.raises(aiohttp.ClientConnectorError):
        await api.get(PODS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                status, pods = await api.get(PODS)
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)
    assert (simulator.url, status, len(pods["items"])) == (url, 200, 11)
    async with api.watch(PODS, resourceVersion=simulator.store.version - 1) as watch:
        assert (await watch.event())[1]["code"] == 410


async def test_a_roll_back_gives_versions_out_again(api: Api, simulator: Simulator) -> None:
    simulator.store.create(resources.PODS, pod("lost"))
    simulator.store.create(resources.PODS, pod("lost-too"))
    version = simulator.store.version
    async with api.watch(PODS, resourceVersion=version) as watch:
        simulator.inject(Fault(kind=FaultKind.ROLL_BACK, count=2))
        with pytest.raises(BROKEN):
            await watch.line()
    _, pods = await api.get(PODS)
    assert (len(pods["items"]), pods["metadata"]["resourceVersion"]) == (10, str(version - 2))
    status, refusal = await api.get(PODS, resourceVersion=version, resourceVersionMatch="NotOlderThan")
    assert (status, refusal["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")
    simulator.store.compact()
    with pytest.raises(Expired):
        simulator.inject(Fault(kind=FaultKind.ROLL_BACK, count=1))


async def test_a_script_runs_by_its_times(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.schedule(
            [
                Fault(kind=FaultKind.CLOSE, at_seconds=0.05),
                Fault(kind=FaultKind.DROP, at_seconds=100),
                Fault(kind=FaultKind.ROLL_BACK, count=5000, at_seconds=0.01),
            ]
        )
        assert simulator.applied == []
        with pytest.raises(BROKEN):  # the roll-back is the first
            await watch.line()
    await until(lambda: len(simulator.applied) == 2)
    assert [fault["kind"] for fault in simulator.applied] == ["roll-back", "close"]
    simulator.clear_faults()


def test_rules_narrow_by_verb_and_resource() -> None:
    rules = Rules()
    fault = Fault(kind=FaultKind.ERROR, code=500, verb="WATCH", resource="pods", duration_seconds=5)
    rules.add(fault, 10.0)
    assert rules.take(FaultKind.ERROR, "LIST", resources.PODS, now=11.0) is None
    assert rules.take(FaultKind.ERROR, "WATCH", resources.NODES, now=11.0) is None
    assert rules.take(FaultKind.DELAY, "WATCH", resources.PODS, now=11.0) is None
    assert rules.take(FaultKind.ERROR, "WATCH", resources.PODS, now=11.0) is fault
    assert rules.take(FaultKind.ERROR, "WATCH", resources.PODS, now=15.0) is None


def test_faults_from_json() -> None:
    script = b'[{"kind": "drop"}, {"kind": "error", "code": 429, "retry_after_seconds": 1, "at_seconds": 2.5}]'
    parsed = faults.parse(script)
    assert parsed[1] == Fault(kind=FaultKind.ERROR, code=429, retry_after_seconds=1, at_seconds=2.5)
    assert [faults.document(fault) for fault in parsed] == json.loads(script)
    assert faults.parse(b'{"kind": "compact"}') == [Fault(kind=FaultKind.COMPACT)]


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b'{"kind": "unknown"}',
        b'{"kind": "error"}',
        b'{"kind": "error", "code": 418}',
        b'{"kind": "delay"}',
        b'{"kind": "roll-back"}',
        b'{"kind": "drop", "at_seconds": -1}',
    ],
)
def test_invalid_faults(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"fault|error|delay|JSON|value"):
        faults.parse(text)


async def test_a_list_whose_pages_lead_to_each_other(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.ALTERNATING_LIST))
    tokens = [""]
    for _ in range(4):
        tokens.append((await api.get(PODS, limit=5, **{"continue": tokens[-1]}))[1]["metadata"]["continue"])
    assert tokens[1] == tokens[3] != tokens[2] == tokens[4]


@pytest.mark.parametrize(("text", "part"), [("surrogate", "\\ud800"), ("nan", ":NaN}"), ("deep", "[[[[[")])
async def test_a_list_with_one_object_that_cannot_be_decoded(
    api: Api, simulator: Simulator, text: str, part: str
) -> None:
    simulator.inject(Fault(kind=FaultKind.BAD_OBJECT, text=text))
    for path in (PODS, "/api/v1/configmaps"):  # one of them is empty otherwise
        async with api.session.get(api.url + path) as response:
            body = await response.text()
        assert part in body
        assert body.count('"name":"bad"') == 1


@pytest.mark.parametrize("text", ["gzip", "deflate"])
async def test_answers_are_compressed_though_nobody_asked(api: Api, simulator: Simulator, text: str) -> None:
    simulator.inject(Fault(kind=FaultKind.COMPRESSED, text=text, megabytes=2))
    async with api.session.get(api.url + PODS, headers={"Accept-Encoding": "identity"}) as response:
        assert response.headers["Content-Encoding"] == text
        assert int(response.headers["Content-Length"]) < 20_000
        assert len(await response.read()) > 2_000_000  # the client unpacks it


async def test_an_errors_body_drips_until_the_fault_is_over(api: Api, simulator: Simulator) -> None:
    simulator.inject(Fault(kind=FaultKind.ERROR, code=500))
    simulator.inject(Fault(kind=FaultKind.DRIP, delay_seconds=0.001))
    async with api.session.get(api.url + PODS) as response:
        assert response.status == 500
        received = b""
        while not received.endswith(b" " * 5):
            received += await response.content.readany()
        simulator.clear_faults()
        with pytest.raises(BROKEN):
            await response.content.read()
