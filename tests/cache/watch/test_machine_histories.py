"""For any server history and any faults, the sink ends with the server's state and never deletes a live object."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import objects
from cache.watch import policy, requests
from cache.watch.policy import Failure
from cache.watch.requests import RequestKind
from cache.watch.states import Watching
from protocol.messages import SyncStatus
from tests.harness.watch_harness import MachineDriver, RecordingSink, bookmark, error_event, event, pod_list

NAMES = [f"a/{index}" for index in range(6)]
POLICY = policy.WatchPolicy(page_limit=2, slice_items=2)

FAULTS = ["none"] * 6 + [
    "refuse",
    "throttle",
    "unavailable",
    "gone",
    "too-large",
    "unauthorized",
    "bad-request",
    "passing-404",
    "half",
    "broken",
    "idle",
    "error-gone",
    "error-500",
]


class Server:
    """The API server's state and history, from which a test can build any answer."""

    def __init__(self, *, has_watch_list: bool) -> None:
        self.has_watch_list = has_watch_list
        self.version = 10
        self.objects: dict[str, int] = {}
        self.history: list[tuple[int, str, str]] = []
        self.compacted = 0
        self.deletions: dict[str, list[int]] = {}
        self.snapshots: dict[str, tuple[int, list[tuple[str, int]]]] = {}

    def write(self, identity: str, *, delete: bool) -> None:
        self.version += 1
        if not delete:
            type = "MODIFIED" if identity in self.objects else "ADDED"
            self.objects[identity] = self.version
            self.history.append((self.version, type, identity))
        elif self.objects.pop(identity, None) is not None:
            self.history.append((self.version, "DELETED", identity))
            self.deletions.setdefault(identity, []).append(self.version)

    def compact(self) -> None:
        self.compacted = self.version
        self.history.clear()
        self.snapshots.clear()

    def events_after(self, position: int) -> Iterator[tuple[int, bytes]]:
        for version, type, identity in self.history:
            if version > position:
                yield version, event(type, identity, version)


class CheckingSink(RecordingSink):
    """Fails if the machine deletes an object that still exists."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server

    def delete(self, event: objects.ObjectEvent) -> None:
        identity = f"{event.namespace}/{event.name}"
        known = int(self.map[identity])
        assert any(deletion > known for deletion in self.server.deletions.get(identity, [])), f"{identity} still exists"
        super().delete(event)


class Scenario:
    """One machine and one server. Hypothesis chooses each answer."""

    def __init__(self, data: st.DataObject, *, has_watch_list: bool) -> None:
        self.data = data
        self.server = Server(has_watch_list=has_watch_list)
        self.sink = CheckingSink(self.server)
        self.driver = MachineDriver(policy=POLICY, sink=self.sink)
        self.is_quiet = False

    def draw(self, strategy: st.SearchStrategy[str]) -> str:
        return self.data.draw(strategy)

    def mutate(self) -> None:
        if self.is_quiet:
            return
        writes = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=4)
        for identity, delete in self.data.draw(writes):
            self.server.write(identity, delete=delete)
        if self.data.draw(st.integers(0, 5)) == 0:
            self.server.compact()

    def turn(self) -> None:
        driver = self.driver
        action = driver.action()
        if isinstance(action, requests.Pause):
            driver.now = action.until
            driver.tick()
        elif isinstance(action, requests.Request):
            self.mutate()
            fault = "none" if self.is_quiet else self.draw(st.sampled_from(FAULTS))
            if not self.refuse(fault):
                {RequestKind.LIST: self.list, RequestKind.WATCH: self.watch, RequestKind.WATCH_LIST: self.watch_list}[
                    action.kind
                ](action, fault)

    def refuse(self, fault: str) -> bool:
        answers = {
            "throttle": (429, "TooManyRequests"),
            "unavailable": (503, "ServiceUnavailable"),
            "gone": (410, "Expired"),
            "unauthorized": (401, "Unauthorized"),
            "bad-request": (400, "BadRequest"),
        }
        if fault == "refuse":
            self.driver.failed(Failure.NETWORK)
        elif fault == "too-large":
            self.driver.refused(504, "Timeout", "Too large resource version: 99")
        elif fault == "passing-404":
            if not self.sink.map:
                return False  # without known objects, one 404 is enough to be absent
            self.driver.refused(404)
            self.driver.failed(Failure.NETWORK)  # ends the 404
        elif fault in answers:
            self.driver.refused(*answers[fault])
        else:
            return False
        return True

    def list(self, request: requests.Request, fault: str) -> None:
        server = self.server
        token = request.query.get("continue", "")
        if fault in ("half", "broken", "idle"):
            self.driver.failed(Failure.MALFORMED)
            return
        if token and token not in server.snapshots:
            self.driver.refused(410, "Expired")
            return
        version, rest = server.snapshots[token] if token else (server.version, sorted(server.objects.items()))
        limit = int(request.query.get("limit", len(rest)))
        page, rest = rest[:limit], rest[limit:]
        next_token = f"{version}-{len(rest)}-{server.version}" if rest else ""
        if rest:
            server.snapshots[next_token] = (version, rest)
        self.driver.page(pod_list(dict(page), version, token=next_token))

    def watch_list(self, request: requests.Request, fault: str) -> None:
        if not self.server.has_watch_list:
            self.driver.refused(422, "Invalid", "sendInitialEvents is forbidden")
            return
        lines = [event("ADDED", identity, version) for identity, version in self.server.objects.items()]
        version = self.server.version
        self.driver.accepted()
        cut = self.data.draw(st.integers(0, len(lines))) if fault != "none" else len(lines)
        self.driver.lines(*lines[:cut])
        if fault != "none":
            self.end(fault)
            return
        self.driver.lines(bookmark(version, ends_initial=True))
        self.follow(version)

    def watch(self, request: requests.Request, fault: str) -> None:
        position = int(request.query["resourceVersion"])
        if position < self.server.compacted:
            self.driver.refused(410, "Expired")
            return
        self.driver.accepted()
        self.follow(position, fault)

    def follow(self, position: int, fault: str = "none") -> None:
        while self.driver.is_streaming():
            self.mutate()
            if position < self.server.compacted:
                self.driver.lines(error_event(410, "Expired"))
                return
            for version, line in self.server.events_after(position):
                self.driver.lines(line)
                position = version
                if fault != "none" and self.data.draw(st.booleans()):
                    self.end(fault)
                    return
            self.driver.now += 10
            self.driver.tick()
            if self.is_quiet:
                return
            if self.data.draw(st.booleans()):
                self.driver.lines(bookmark(self.server.version))
                position = self.server.version
            else:
                self.end(fault)

    def end(self, fault: str) -> None:
        if not self.driver.is_streaming():
            return
        match fault:
            case "broken":
                self.driver.lines(b'{"type":"ADDED","obj')
            case "idle":
                self.driver.failed(Failure.IDLE)
            case "error-gone":
                self.driver.lines(error_event(410, "Gone"))
            case "error-500":
                self.driver.lines(error_event(500))
            case _:
                self.driver.ended(is_truncated=fault == "half")


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data(), st.booleans())
def test_the_sink_ends_with_the_servers_state_and_no_live_object_is_deleted(
    data: st.DataObject, has_watch_list: bool
) -> None:
    scenario = Scenario(data, has_watch_list=has_watch_list)
    for _ in range(data.draw(st.integers(1, 25))):
        scenario.turn()
    scenario.is_quiet = True
    for _ in range(40):
        scenario.turn()
        if scenario.driver.is_streaming() and isinstance(scenario.driver.machine.state, Watching):
            break
    assert scenario.sink.map == {identity: str(version) for identity, version in scenario.server.objects.items()}
    assert scenario.sink.current_status is SyncStatus.IN_SYNC
    assert scenario.driver.machine.object_count == len(scenario.server.objects)
