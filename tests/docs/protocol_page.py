"""Generates parts of docs/protocol.md from the code: `python -m tests.docs.protocol_page`.

The generated parts are between `<!-- begin NAME -->` and `<!-- end NAME -->`. A test checks that they are up to date.
"""

import ast
import inspect
import json
import re
from collections.abc import Sequence

import msgpack

from clients.conformance import against_client, against_server, rejected, wire
from protocol import digest, reasons
from protocol.native import codec, connection, frames
from tests.docs import vectors
from tests.harness.repository import DOCS

PAGE = DOCS / "protocol.md"
JSON = DOCS / "protocol-vectors.json"
CONFORMANCE = DOCS / "conformance.md"
SHOWN_BYTES_MAX = 48
"""Longer examples of what is rejected are in the file only."""


def diagram(role: connection.Role) -> str:
    """The transition table of one role as a Mermaid diagram: what it may receive in each state."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (of_role, state, kind), following in connection._TRANSITIONS.items():
        if of_role is role:
            edges.setdefault((state.value, following.value), []).append(codec.message_name(kind))
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> preface", "    preface --> hello: (preface)"]
    if role is connection.Role.CLIENT:  # of the same message: what the client has said before decides
        edges["hello", "resuming"] = ["server-hello (R4 or R6)"]
    lines += [f"    {state} --> {following}: {', '.join(kinds)}" for (state, following), kinds in edges.items()]
    return "\n".join([*lines, "    closed --> [*]", "```"])


def reasons_table() -> str:
    """All reasons with their meaning, which is the string after each member in the source."""
    body = ast.parse(inspect.getsource(reasons.DisconnectReason)).body[0]
    assert isinstance(body, ast.ClassDef)
    rows = ["| Reason | Travels | From | Retry | Meaning |", "|---|---|---|---|---|"]
    for assignment, text in zip(body.body[1::2], body.body[2::2], strict=True):
        match assignment, text:
            case ast.Assign(value=ast.Constant(value=str(reason))), ast.Expr(value=ast.Constant(value=str(meaning))):
                rows.append(
                    f"| `{reason}` | {_travels(reasons.DisconnectReason(reason))} | {' '.join(meaning.split())} |"
                )
            case _:
                raise AssertionError(f"line {assignment.lineno}: every reason needs its meaning after it")
    return "\n".join(rows)


def _travels(reason: reasons.DisconnectReason) -> str:
    if reason is reasons.DisconnectReason.CLIENT_CLOSED:
        return "yes | client | "
    retry = reasons.GOODBYES.get(reason)
    return f"yes | server | {retry.value}" if retry is not None else "no | | "


def as_json(value: object) -> object:
    """A msgpack value as JSON, with bytes as {"bin": hex}, and integers that JavaScript would round as text."""
    match value:
        case bool():
            return value
        case int() if value > 2**53 - 1:
            return {"int": str(value)}
        case bytes():
            return {"bin": value.hex()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case dict():
            return {key: as_json(item) for key, item in value.items()}
        case _:
            return value


def hex_lines(data: bytes) -> list[str]:
    """Hex digits, 32 bytes per line."""
    return [data[start : start + 32].hex() for start in range(0, len(data), 32)]


def vector_content() -> dict[str, object]:
    """The content of docs/protocol-vectors.json."""
    found = []
    for name, message in vectors.VECTORS:
        payload = codec.encode(message)
        content = as_json(msgpack.unpackb(payload, raw=False))
        packed = frames.pack_frame(payload).hex()
        found.append({"name": name, "message": content, "payload": payload.hex(), "frame": packed})
    before = {name: data.hex() for name, data in vectors.BEFORE_CLIENT.items()}
    before_server = {name: data.hex() for name, data in vectors.BEFORE_SERVER.items()}
    return {
        "preface": frames.PREFACE.hex(),
        "messages": found,
        "zstd_frame": {"frame": vectors.ZSTD_FRAME.hex(), "message": [8]},
        "dictionary_frame": {"dictionary": wire.DICTIONARY.hex(), "frame": vectors.DICTIONARY_FRAME.hex()},
        "state_digests": [
            {
                "map": {key: {"bin": value.hex()} for key, value in content.items()},
                "digest": f"{digest.state_digest(content.items()):016x}",
            }
            for content in vectors.PAIRS
        ],
        "session": steps(vectors.SESSION),
        "session_resumed_by_position": steps(vectors.RESUMED_SESSION),
        "session_resumed_by_digests": steps(vectors.RESUMED_BY_DIGESTS),
        "session_with_a_subscription": steps(vectors.SUBSCRIBED_SESSION),
        "refused_session": steps(vectors.REFUSED_SESSION),
        "rejected_by_clients": [
            {
                "rule": case.rule,
                "name": case.name,
                "needs": case.needs,
                "before": before[case.after],
                "bytes": case.data.hex(),
            }
            for case in rejected.TO_CLIENTS
        ],
        "rejected_by_servers": [
            {
                "rule": case.rule,
                "name": case.name,
                "before": before_server[case.after],
                "bytes": case.data.hex(),
                "reason": case.reason,
            }
            for case in rejected.TO_SERVERS
        ],
    }


def vector_text() -> str:
    """The test vectors of the messages, for the page."""
    parts = []
    for name, message in vectors.VECTORS:
        payload = codec.encode(message)
        content = json.dumps(as_json(msgpack.unpackb(payload, raw=False)), ensure_ascii=False)
        body = "\n".join(hex_lines(frames.pack_frame(payload)))
        parts.append(f"**{name}**: `{content}`\n\n```\n{body}\n```")
    return "\n\n".join(parts)


def digest_table() -> str:
    """The test vectors of the state digest, for the page."""
    rows = ["| Map | State digest |", "|---|---|"]
    for content in vectors.PAIRS:
        shown = ", ".join(f"`{key}` = `{value.hex() or '(empty)'}`" for key, value in content.items())
        rows.append(f"| {shown or '(no keys)'} | `{digest.state_digest(content.items()):016x}` |")
    return "\n".join(rows)


def steps(session: Sequence[vectors.Step]) -> list[dict[str, str]]:
    """A session for the file."""
    return [{"from": step.sender, "bytes": step.data.hex(), "comment": step.comment} for step in session]


def rejected_by_clients() -> str:
    """What a client rejects."""
    rows = ["| Rule | What | After | Bytes |", "|---|---|---|---|"]
    rows += [f"| {one.rule} | {one.name} | {one.after} | {_short(one.data)} |" for one in rejected.TO_CLIENTS]
    return "\n".join(rows)


def rejected_by_servers() -> str:
    """What a server rejects, and with which goodbye."""
    rows = ["| Rule | What | After | Reason | Bytes |", "|---|---|---|---|---|"]
    for one in rejected.TO_SERVERS:
        reason = f"`{one.reason}`" if one.reason else "(none)"
        rows.append(f"| {one.rule} | {one.name} | {one.after} | {reason} | {_short(one.data)} |")
    return "\n".join(rows)


def _short(data: bytes) -> str:
    """The bytes, if there are few; the file has all."""
    return f"`{data.hex()}`" if len(data) <= SHOWN_BYTES_MAX else f"{len(data)} bytes, in the file"


def session_text(session: Sequence[vectors.Step]) -> str:
    """An annotated session: for each step a comment, the sender and the bytes."""
    lines = ["```"]
    for step in session:
        arrow = ">" if step.sender == "client" else "<"
        lines.append(f"# {step.comment}")
        lines += [f"{arrow} {line}" for line in hex_lines(step.data)]
    return "\n".join([*lines, "```"])


def render(page: str) -> str:
    """The page with all generated parts replaced.

    Raises:
        ValueError: a part has no begin or end marker.
    """
    parts = {
        "client states": diagram(connection.Role.CLIENT),
        "server states": diagram(connection.Role.SERVER),
        "reasons": reasons_table(),
        "digests": digest_table(),
        "vectors": vector_text(),
        "session": session_text(vectors.SESSION),
        "session resumed by position": session_text(vectors.RESUMED_SESSION),
        "session resumed by digests": session_text(vectors.RESUMED_BY_DIGESTS),
        "session with a subscription": session_text(vectors.SUBSCRIBED_SESSION),
        "refused session": session_text(vectors.REFUSED_SESSION),
        "rejected by clients": rejected_by_clients(),
        "rejected by servers": rejected_by_servers(),
    }
    for name, text in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, found, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"the page has no part {name!r}")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def render_json() -> str:
    """The text of docs/protocol-vectors.json."""
    return json.dumps(vector_content(), ensure_ascii=False, indent=1) + "\n"


RULE = re.compile(r"^- \*\*([A-Z]\d+)\*\* \((client|server|both)\) (.*)$", re.MULTILINE)


def rules(page: str) -> dict[str, str]:
    """Whom each rule of the page binds."""
    return {number: role for number, role, _ in RULE.findall(page)}


def checked_rules() -> dict[str, set[str]]:
    """Of clients and of servers."""
    return {
        "clients": {rule for check in against_client.CHECKS for rule in check.rules},
        "servers": {rule for check in against_server.CHECKS for rule in check.rules},
    }


UNCHECKED = re.compile(r"^\| ([A-Z]\d+(?:, [A-Z]\d+)*) \| (clients|servers|both) \| ([^|]+\.) \|$", re.MULTILINE)


def unchecked_rules(page: str) -> set[tuple[str, str]]:
    """The rules for which the kit's page gives a reason why there is no check, each with its side."""
    return {
        (rule, side)
        for names, sides, _ in UNCHECKED.findall(page)
        for rule in names.split(", ")
        for side in (("clients", "servers") if sides == "both" else (sides,))
    }


def render_conformance(page: str, protocol_page: str) -> str:
    """The page of the kit, with the rules that checks are about."""
    known = rules(protocol_page)
    rows = ["| Of | Rules |", "|---|---|"]
    for side, checked in checked_rules().items():
        names = [rule for rule, binds in known.items() if rule in checked and binds in (side[:-1], "both")]
        rows.append(f"| {side} | {', '.join(names)} |")
    before, begin, rest = page.partition("<!-- begin checked rules -->")
    _, end, after = rest.partition("<!-- end checked rules -->")
    return f"{before}{begin}\n" + "\n".join(rows) + f"\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    JSON.write_text(render_json(), encoding="utf-8")
    rendered = render_conformance(CONFORMANCE.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8"))
    CONFORMANCE.write_text(rendered, encoding="utf-8")
