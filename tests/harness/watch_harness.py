"""For tests of the watch machine: API objects as JSON, a sink that records what it receives, and a driver."""

import json
import random
from typing import Any

from cache import objects, resources
from cache.watch import api_group, decoding, machine, requests
from cache.watch.policy import Failure, WatchPolicy
from protocol.messages import SyncStatus

PODS = resources.ResourceType.parse("v1/pods")


def json_bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def pod(identity: str, version: int | str) -> dict[str, Any]:
    namespace, name = identity.split("/")
    metadata = {"name": name, "namespace": namespace, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"}}


def event(type: str, identity: str, version: int | str) -> bytes:
    return json_bytes({"type": type, "object": pod(identity, version)})


def bookmark(version: int | str, *, ends_initial: bool = False) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if ends_initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return json_bytes({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}})


def status(code: int, reason: str = "", message: str = "", **details: object) -> bytes:
    value = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return json_bytes(value | ({"details": details} if details else {}))


def error_event(code: int, reason: str = "") -> bytes:
    return b'{"type":"ERROR","object":' + status(code, reason, reason) + b"}"


def pod_list(objects: dict[str, int], version: int | str, *, token: str = "") -> bytes:
    items = []
    for identity, object_version in objects.items():
        item = pod(identity, object_version)
        del item["apiVersion"], item["kind"]  # the API server omits them for built-in types
        items.append(item)
    metadata = {"resourceVersion": str(version), "continue": token}
    return json_bytes({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})


class RecordingSink:
    """Keeps a map of the objects and a log of the calls. Fails on calls that a sink must never receive."""

    def __init__(self) -> None:
        self.map: dict[str, str] = {}
        self.log: list[str] = []
        self.events: list[objects.ObjectEvent] = []
        self.current_status = SyncStatus.WAITING
        self.skipped_objects: list[objects.SkippedObject] = []
        self.confirmations = 0
        self.batches = 0

    def apply(self, event: objects.ObjectEvent) -> None:
        assert event.raw is not None
        assert (event.api_version, event.kind) == ("v1", "Pod")
        identity = f"{event.namespace}/{event.name}"
        self.map[identity] = event.resource_version
        self.events.append(event)
        self.log.append(f"{event.origin.value} {identity}@{event.resource_version}")

    def delete(self, event: objects.ObjectEvent) -> None:
        identity = f"{event.namespace}/{event.name}"
        assert identity in self.map, f"deletion of {identity}, which was never applied"
        del self.map[identity]
        self.events.append(event)
        self.log.append(f"delete {identity}")

    def skipped(self, skipped: objects.SkippedObject) -> None:
        self.skipped_objects.append(skipped)

    def status(self, type: resources.ResourceType, status: SyncStatus) -> None:
        assert status is not self.current_status
        self.current_status = status
        self.log.append(status.label)

    def confirmed(self, type: resources.ResourceType) -> None:
        self.confirmations += 1

    def batch_end(self) -> None:
        self.batches += 1

    async def room(self) -> None:
        pass

    def take(self) -> list[str]:
        """Return the log since the last call."""
        log, self.log = self.log, []
        return log


class MachineDriver:
    """Drives a watch machine step by step, in virtual time."""

    def __init__(
        self,
        *,
        policy: WatchPolicy | None = None,
        sink: RecordingSink | None = None,
        seed: int = 1,
        group: api_group.ApiGroup | None = None,
    ) -> None:
        self.now = 1000.0
        self.sink = sink or RecordingSink()
        self._notices: list[requests.Notice] = []
        self.policy = policy or WatchPolicy()
        self.machine = machine.WatchMachine(
            PODS,
            self.sink,
            policy=self.policy,
            random=random.Random(seed),
            now=self.now,
            group=group,
        )

    @property
    def counters(self) -> Any:
        return self.machine.counters

    @property
    def notices(self) -> list[requests.Notice]:
        self._notices += self.machine.take_notices()
        return self._notices

    def is_streaming(self) -> bool:
        return self.machine.streaming

    def notice_kinds(self) -> list[str]:
        """Return the kinds of the notices since the last call."""
        kinds = [notice.kind.name for notice in self.notices]
        self.notices.clear()
        return kinds

    def action(self) -> requests.Action:
        return self.machine.next_action(self.now)

    def request(self, *, within: float = 0.0) -> requests.Request:
        """Return the next request. Before it, pass pauses of at most `within` seconds in all."""
        limit = self.now + within
        while True:
            action = self.action()
            if isinstance(action, requests.Request):
                return action
            assert isinstance(action, requests.Pause), f"unexpected {action}"
            assert action.until <= limit, f"a pause of {action.until - self.now} s"
            self.now = action.until
            self.tick()

    def pause(self) -> float:
        """Pass the pause that comes next. Return its length in seconds."""
        action = self.action()
        assert isinstance(action, requests.Pause)
        seconds = action.until - self.now
        self.now = action.until
        self.tick()
        return seconds

    def tick(self) -> None:
        self.machine.tick(self.now)
        self.machine.end_batch(self.now)

    def page(self, body: bytes) -> None:
        self._page(decoding.decode_page(body, PODS))

    def split_page(self, body: bytes) -> None:
        """Process a page that cannot be decoded as a whole."""
        steps = decoding.split_page(body, PODS)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                self._page(end.value)
                return

    def _page(self, page: decoding.ListPage) -> None:
        self.machine.accepted(self.now)
        self.machine.begin_page(self.now, page)
        self.machine.items(page, page.items)
        self.machine.end_page(self.now, page)
        self.settle()

    def settle(self) -> None:
        while self.machine.sweep(self.now):
            pass
        self.machine.end_batch(self.now)

    def refused(
        self,
        code: int,
        reason: str = "",
        message: str = "",
        *,
        retry_after: float = 0,
        is_listed: bool | None = True,
        **details: Any,
    ) -> None:
        """Refuse the request. If that makes the machine ask whether the type is listed, answer."""
        body = status(code, reason, message, **details)
        self.machine.refused(self.now, code, body=body, retry_after_seconds=retry_after)
        if code == 403 and isinstance(self.action(), requests.LookUp):
            self.machine.looked_up(self.now, is_listed=is_listed, problem="" if is_listed is not None else "503")
        self.settle()

    def accepted(self) -> None:
        self.machine.accepted(self.now)

    def lines(self, *lines: bytes) -> None:
        for line in lines:
            assert self.machine.streaming, "a line after the end of the stream"
            self.machine.line(self.now, line)
        self.settle()

    def ended(self, *, is_truncated: bool = False) -> None:
        self.machine.stream_ended(self.now, is_truncated=is_truncated)
        self.settle()

    def failed(self, failure: Failure = Failure.NETWORK, detail: str = "refused") -> None:
        self.machine.interrupted(self.now, failure, detail)
        self.settle()

    def sync(self, objects: dict[str, int], version: int) -> None:
        """Bring a new machine in sync by WatchList."""
        self.request()
        self.accepted()
        self.lines(
            *(event("ADDED", identity, v) for identity, v in objects.items()), bookmark(version, ends_initial=True)
        )
        self.sink.take()

    def stay_healthy(self) -> None:
        """Let the stream live for a healthy period."""
        self.now += self.policy.healthy_seconds
        self.tick()
