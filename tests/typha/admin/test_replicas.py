"""Replicas compared: what is said about each of them, and about all."""

from typing import Any

import pytest

from typha.admin import answers, replicas


def replica(server: str, *, digest: str = "aa", count: int = 1, **changes: Any) -> replicas.Replica:
    """A good one, but for the changes of its service, feed, kind or list of clients."""

    def part(**members: Any) -> dict[str, Any]:
        return members | {name: value for name, value in changes.items() if name in members}

    one_worker = [answers.Worker(worker=1, ready=True, connections=1)]
    service = answers.Service(**part(version="1", workers_wanted=1, workers=one_worker, is_draining=False))
    feed = answers.Feed(feed="felix", keys=5, digest=digest, clients=count, **part(status="in-sync"))
    kind = answers.Kind(type="core/v1/pods", state="in-sync", **part(confirmed_seconds=3.0))
    clients = answers.Clients(clients=[], total=0, **part(complete=True))
    return replicas.Replica(
        server=server, status=answers.Status(service=service, feeds=[feed], kinds=[kind]), clients=clients
    )


def test_good_replicas_have_no_findings() -> None:
    assert replicas.compare([replica("a"), replica("b")]) == []
    assert not replicas.may_differ([replica("a"), replica("b")])


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"is_draining": True}, "a: is draining"),
        ({"workers": []}, "a: 0 of 1 workers are ready"),
        ({"status": "resync"}, "a: feed felix is resync"),
        ({"confirmed_seconds": 999.0}, "a: core/v1/pods was last confirmed by the API server 999 s ago"),
        ({"confirmed_seconds": None}, "a: core/v1/pods was last confirmed by the API server never"),
        ({"complete": False}, "a: worker ? has not listed all clients in time: some are missing here"),
        ({"version": "2"}, "replicas have different versions: 1, 2"),
        ({"count": 90}, "a: has 90 clients, and the mean is 31"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], finding: str) -> None:
    bad = replica("a", **changes)
    assert replicas.compare([bad, replica("b"), replica("c")]) == [finding]


def test_a_replica_that_does_not_answer_is_named() -> None:
    dead = replicas.Replica(server="b", error="refused")
    assert replicas.compare([replica("a"), dead]) == ["b: no answer: refused"]


def test_contents_that_only_change_do_not_differ() -> None:
    """Two looks: what both replicas had before and have now is different for good."""
    before = [replica("a", digest="aa"), replica("b", digest="bb")]
    assert replicas.may_differ(before)
    assert replicas.compare(before) == []
    assert replicas.compare([replica("a", digest="cc"), replica("b", digest="bb")], before=before) == []
    assert replicas.compare(before, before=before) == [
        "feed felix has different contents: a 5 keys (aa), b 5 keys (bb)"
    ]
