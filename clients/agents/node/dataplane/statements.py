"""Statements of nftables in the JSON form that `nft -j` reads. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

Statement = Mapping[str, Any]
Expression = Mapping[str, Any]

DIGEST_BYTES = 6
"""Length of the digest in a rule's comment. It finds edits by hand; it need not withstand a forger, who is root."""

COMMENT_MAX_BYTES = 128
"""What nft accepts as a comment."""

PASS_MARK = 0x10000
"""Bit of the packet's mark that is set from a rule with the action pass to the end of its tier.

The lowest bit of those that Calico uses by default. Nothing else sees it: each tier clears it before it ends.
"""

PROTOCOL: Expression = {"meta": {"key": "l4proto"}}
MARK: Expression = {"meta": {"key": "mark"}}
IN_INTERFACE: Expression = {"meta": {"key": "iifname"}}
OUT_INTERFACE: Expression = {"meta": {"key": "oifname"}}
SOURCE: Expression = {"payload": {"protocol": "ip", "field": "saddr"}}
DESTINATION: Expression = {"payload": {"protocol": "ip", "field": "daddr"}}
SOURCE_PORT: Expression = {"payload": {"protocol": "th", "field": "sport"}}
DESTINATION_PORT: Expression = {"payload": {"protocol": "th", "field": "dport"}}
ICMP_TYPE: Expression = {"payload": {"protocol": "icmp", "field": "type"}}
ICMP_CODE: Expression = {"payload": {"protocol": "icmp", "field": "code"}}

ACCEPT: Statement = {"accept": None}
DROP: Statement = {"drop": None}
RETURN: Statement = {"return": None}
MASQUERADE: Statement = {"masquerade": None}


class FilterRule(NamedTuple):
    """One rule of a chain. The comment identifies it: two rules with the same comment are the same."""

    statements: tuple[Statement, ...]
    comment: str


def rule(label: str, *statements: Statement) -> FilterRule:
    """A rule whose comment is the label, for people, and a digest of the statements."""
    digest = hashlib.blake2b(msgspec.json.encode(statements), digest_size=DIGEST_BYTES).hexdigest()
    room = COMMENT_MAX_BYTES - len(digest) - 1
    readable = "".join(character if character.isalnum() or character in "-._/: " else "?" for character in label)
    return FilterRule(statements, f"{readable.encode('ascii', 'replace').decode()[:room]} {digest}")


def match(left: Expression, right: object) -> Statement:
    """Holds if the two are equal, or if `left` is in the set or the range on the right."""
    return {"match": {"op": "==", "left": left, "right": right}}


def no_match(left: Expression, right: object) -> Statement:
    """The opposite of `match`."""
    return {"match": {"op": "!=", "left": left, "right": right}}


def joined(*parts: Expression) -> Expression:
    """Several expressions as one key of a set."""
    return {"concat": list(parts)}


def any_of(values: Sequence[object]) -> object:
    """An anonymous set. Values must not overlap."""
    return {"set": list(values)}


def net(cidr: str) -> object:
    """A CIDR as the right side of a match, or as an element."""
    address, _, length = cidr.partition("/")
    return address if length in {"", "32"} else {"prefix": {"addr": address, "len": int(length)}}


def named(set_name: str) -> str:
    """A set of the table, as the right side of a match."""
    return f"@{set_name}"


def jump(chain: str) -> Statement:
    """Go through another chain and come back."""
    return {"jump": {"target": chain}}


def dispatch(key: Expression, verdict_map: str) -> Statement:
    """Take the verdict that a map of the table has for the key. Nothing happens if it has none."""
    return {"vmap": {"key": key, "data": named(verdict_map)}}


def connection_state(*states: str) -> Statement:
    """Holds if connection tracking says one of these."""
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": list(states)}}


SET_PASS_MARK: Statement = {"mangle": {"key": MARK, "value": {"|": [MARK, PASS_MARK]}}}
CLEAR_PASS_MARK: Statement = {"mangle": {"key": MARK, "value": {"^": [MARK, PASS_MARK]}}}
HAS_PASS_MARK: Statement = {"match": {"op": "==", "left": {"&": [MARK, PASS_MARK]}, "right": PASS_MARK}}

LOG_PER_SECOND = 10
"""A rule with the action log writes at most this often: packets come from outside, and the kernel's log is small."""

LOG: tuple[Statement, ...] = (
    {"limit": {"rate": LOG_PER_SECOND, "per": "second"}},
    {"log": {"prefix": "calico-packet: "}},
)
