"""Odd and malformed input, recorded together with what the original answered: the answer here is the same."""

import re
import socket
from typing import Any

import msgspec
import pytest

from cache.feeds.calico import releases
from tests import wire
from tests.harness import typha_peer, worker_stand
from tests.harness.worker_stand import FAST
from tests.typha.conftest import OpenStage

pytestmark = pytest.mark.slow

FOLDER = "client-to-server-odd"
RECORDED: list[dict[str, Any]] = wire.load_json(f"{FOLDER}/results.json")
SENT = {one["id"]: wire.load(f"{FOLDER}/{one['file']}") for one in RECORDED if one["file"]}
LIMITS = msgspec.structs.replace(
    FAST,
    handshake_timeout_seconds=1.0,
    ping_interval_seconds=0.4,
    pong_timeout_seconds=1.0,
    refusal_hold_seconds=0.5,
    release_overrides=(("*", releases.Release.NEWEST),),
)
"""The original's limits during the recording; the hold and the overrides are ours. The clients name no version."""
HELD = {"M20": "unsupported-protocol", "M27": "unknown-feed", "M28": "unknown-feed"}
"""Held for a while, then closed. M20 begins TLS. M27 is an agent of an older release: here is none of its data."""
SOONER = {"M01b", "M02", "M03c"}
"""Closed at once here; the original waits for the rest of the message that the length announces."""
HANGS_UP = {"M06a", "M06d"}
"""The client then shut its side of the connection down."""
OVER_OUR_LIMITS = {"M24a", "M24b"}
"""Unknown values with 1,000 and 100,000 levels: the original skips them, but no agent sends such a hello."""
AT_ONCE = {"bad-preface", "protocol-error", "message-too-large", "client-closed"}


def test_all_recordings_are_there() -> None:
    assert len(SENT) == 43
    assert len(RECORDED) == 47
    assert SENT.keys() >= HELD.keys() | HANGS_UP | SOONER


@pytest.mark.parametrize("recorded", [one for one in RECORDED if one["file"]], ids=lambda one: one["id"])
async def test_what_the_original_was_sent(open_stage: OpenStage, recorded: dict[str, Any]) -> None:
    number = recorded["id"]
    stage = await open_stage(LIMITS, feed_name=typha_peer.FELIX)
    stage.put(worker_stand.pod("a"))
    stage.in_sync()
    peer = await stage.join(typha_peer.TyphaPeer)
    peer.answers_pings = False
    peer.typha.send_hello(typha_peer.HELLO)  # not sent: the recording is. The peer then understands the answer
    peer.typha.data_to_send()
    loop = stage.loop
    begun = loop.time()
    await loop.sock_sendall(peer.socket, SENT[number])
    if number in HANGS_UP:
        peer.socket.shutdown(socket.SHUT_WR)
    await peer.read_to_end()
    seconds = loop.time() - begun
    found = re.match(r"closed by server after (\d+\.\d) s", recorded["connection"])
    assert found is not None
    reply = recorded["reply"] or [] if number not in OVER_OUR_LIMITS else []
    assert (peer.greeting is not None) == ("MsgServerHello" in reply)
    assert peer.restarts == ("MsgDecoderRestart" in reply)
    assert bool(peer.received) == bool(reply)
    if number in HELD:
        assert stage.disconnects == {HELD[number]: 1}
        assert seconds >= LIMITS.refusal_hold_seconds
    elif found[1] == "0.0" or number in SOONER | OVER_OUR_LIMITS:
        assert sum(stage.disconnects.values()) == 1
        assert stage.disconnects.keys() <= AT_ONCE
    else:
        assert stage.disconnects == {"pong-timeout" if reply else "handshake-timeout": 1}
        assert seconds >= 1.0
    if "MsgPing" in reply or "then binary" in reply:
        assert (peer.entries, peer.statuses, peer.pings > 0) == (stage.content, [2], True)
