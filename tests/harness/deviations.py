"""The recordings from which we deviate on purpose, with our data and the reason.

Here an agent's map is a function of the present objects alone, and a bad object affects only itself. In the original
the map depends on history in these cases, or the feed stalls. Everything not named here must equal the recording.
"""

import types
from collections.abc import Mapping
from typing import NamedTuple

from tests.harness import corpus

NEW, UPDATED, DELETED = 1, 2, 3


class Deviation(NamedTuple):
    """The deviation from one recording: our items of whole steps, and our additional items of its snapshot."""

    why: str
    deltas: Mapping[tuple[str, int], list[corpus.Item]] = types.MappingProxyType({})
    snapshot: Mapping[str, list[corpus.Item]] = types.MappingProxyType({})


def _affinity(node: str, cidr: str) -> str:
    return f"/calico/ipam/v2/host/{node}/ipv4/block/{cidr}"


def _recorded(name: str, syncer: str, step: int, key_end: str) -> corpus.Item:
    found = [item for item in corpus.load(name).delta(syncer, step) if item.key.endswith(key_end)]
    return found[0]


def _deleted(key: str) -> corpus.Item:
    return corpus.Item(key, None, "", "", DELETED)


_COLLISION = "config-key-collision"
_COLLIDING_KEY = "/calico/v1/host/w-coll/config/IpInIpTunnelAddr"
_SAME_CIDR = "ipamblock-same-cidr"
_HEALED = "ipamblock-bad-cidr-healed"

DEVIATIONS = {
    "blockaffinity-key-change": Deviation(
        "a changed key deletes the old one",
        {
            ("bgp", 1): [
                _deleted(_affinity("worker-1", "10.57.0.0-26")),
                _recorded("blockaffinity-key-change", "bgp", 1, ""),
            ]
        },
    ),
    "blockaffinity-same-key": Deviation(
        "the later name holds the key, and deleting the other one is nothing",
        {
            ("bgp", 2): [],
            ("bgp", 3): [_recorded("blockaffinity-same-key", "bgp", 3, "")._replace(update_type=UPDATED)],
        },
    ),
    "v3-blockaffinity-steps": Deviation(
        "an affinity marked as deleted is absent, as in a list",
        {("bgp", 2): [_deleted(_affinity("w1", "10.82.0.0-30"))], ("bgp", 3): []},
    ),
    _SAME_CIDR: Deviation(
        "the later name holds the key; when it is deleted, the other takes over",
        {
            ("felix", 2): [],
            ("felix", 3): [_recorded(_SAME_CIDR, "felix", 2, "")],
            ("felix", 4): [_recorded(_SAME_CIDR, "felix", 4, "")._replace(update_type=UPDATED)],
        },
    ),
    _COLLISION: Deviation(
        "the configuration's value shows as long as it is there, then the node's takes over",
        {
            ("felix", 1): [
                _recorded(_COLLISION, "felix", 1, "NFTablesMode"),
                _recorded(_COLLISION, "felix", 1, "NFTablesFlowTableOffload"),
                _recorded(_COLLISION, "felix", 1, "IpInIpTunnelAddr")._replace(update_type=UPDATED),
            ],
            ("felix", 2): [_recorded(_COLLISION, "felix", 2, "nodes/w-coll")],
            ("felix", 3): [
                _recorded(_COLLISION, "felix", 3, "NFTablesMode"),
                _recorded(_COLLISION, "felix", 3, "NFTablesFlowTableOffload"),
                corpus.Item(_COLLIDING_KEY, "10.1.1.1", "7534", "", UPDATED),
            ],
            ("felix", 4): [_recorded(_COLLISION, "felix", 4, "nodes/w-coll")],
        },
    ),
    _HEALED: Deviation(
        "a bad block is refused by name, and the others arrive at once",
        {("felix", 1): corpus.load(_HEALED).delta("felix", 2), ("felix", 2): []},
    ),
    "policy-undecodable": Deviation(
        "a fresh server lacks the bad policy only, not all of its kind",
        snapshot={"felix": corpus.load("policy-undecodable").delta("felix", 0)},
    ),
}

REJECTED = {
    "blockaffinity-bad-deleted": {("bgp", "baddel", "bad-deleted")},
    "cnp-bad-rule": {("felix", "badrule", "doubtful")},
    _HEALED: {("felix", "bad", "bad-cidr")},
    "metadata-annotation-bad": {
        ("felix", "bad-meta", "bad-metadata-annotation"),
        ("bgp", "bad-meta", "bad-metadata-annotation"),
    },
    "policy-undecodable": {("felix", "badport", "undecodable")},
    "pod-bad-ip-from-start": {("felix", "bornbad", "bad-ip")},
    "policy-bad-selector": {
        ("felix", "bad-sel", "invalid"),
        ("felix", "bad-rule", "invalid"),
        ("felix", "bad-rule-ns", "invalid"),
        ("felix", "bad-ns", "doubtful"),
        ("felix", "bad-sa", "doubtful"),
    },
}
"""(feed, object name, reason) of the rejections in these recordings."""
