"""The kit's own bytes are those of the page, although it shares no code with our encoder."""

import json

from clients.conformance import wire
from protocol import digest
from tests.harness.repository import DOCS


def test_the_kits_snapshot_is_that_of_the_page() -> None:
    found = json.loads((DOCS / "protocol-vectors.json").read_text(encoding="utf-8"))
    for entry in found["messages"]:
        if entry["name"] in ("snapshot-begin", "status in-sync", "ping", "snapshot-end"):
            frames = wire.snapshot(wire.SEQUENCE, wire.MAP) + wire.status(wire.SEQUENCE) + wire.frame(wire.PING)
            assert bytes.fromhex(entry["frame"]) in frames


def test_digests() -> None:
    for content in ({}, wire.MAP, {"é": b""}):
        assert wire.digest(content) == digest.state_digest(content.items())


def test_chunks_cover_the_map() -> None:
    content = {f"/{number}": b"v" for number in range(7)}
    data = wire.snapshot(5, content, chunks=3)
    assert data.startswith(wire.frame(wire.BEGIN, 5, 7, 3))
    assert data.endswith(wire.frame(wire.END, 5, 7, wire.digest(content)))
    assert all(key.encode() in data for key in content)
