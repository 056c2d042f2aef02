"""Generates the parts of docs/protocol.md that follow from the code: `python -m tests.docs.protocol_page`.

Each part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. The tests compare them.
"""

import ast
import inspect
import json
import re

import msgpack

from protocol import digest, reasons
from protocol.native import codec, connection, frames
from tests.docs import vectors
from tests.harness.repository import DOCS

PAGE = DOCS / "protocol.md"
JSON = DOCS / "protocol-vectors.json"


def message_name(kind: type) -> str:
    """`SnapshotBegin` as the page writes it: `snapshot-begin`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def diagram(role: connection.Role) -> str:
    """Mermaid diagram of what one end may receive, from the transition table."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (of_role, state, kind), following in connection._TRANSITIONS.items():
        if of_role is role:
            edges.setdefault((state.value, following.value), []).append(message_name(kind))
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> preface", "    preface --> hello: (preface)"]
    lines += [f"    {state} --> {following}: {', '.join(kinds)}" for (state, following), kinds in edges.items()]
    return "\n".join([*lines, "    closed --> [*]", "```"])


def reasons_table() -> str:
    """Table of the disconnect reasons and the text after each in the source."""
    body = ast.parse(inspect.getsource(reasons.DisconnectReason)).body[0]
    assert isinstance(body, ast.ClassDef)
    rows = ["| Reason | Meaning |", "|---|---|"]
    for assignment, text in zip(body.body[1::2], body.body[2::2], strict=True):
        match assignment, text:
            case ast.Assign(value=ast.Constant(value=str(reason))), ast.Expr(value=ast.Constant(value=str(meaning))):
                rows.append(f"| `{reason}` | {' '.join(meaning.split())} |")
            case _:
                raise AssertionError(f"line {assignment.lineno}: each reason is followed by its meaning")
    return "\n".join(rows)


def as_json(value: object) -> object:
    """A msgpack value as JSON: bin as {"bin": hex}."""
    match value:
        case bytes():
            return {"bin": value.hex()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case dict():
            return {key: as_json(item) for key, item in value.items()}
        case _:
            return value


def hex_lines(data: bytes) -> list[str]:
    """Lines of hex digits, 32 bytes each."""
    return [data[start : start + 32].hex() for start in range(0, len(data), 32)]


def vector_content() -> dict[str, object]:
    """Content of docs/protocol-vectors.json."""
    found = []
    for name, message in vectors.VECTORS:
        payload = codec.encode(message)
        content = as_json(msgpack.unpackb(payload, raw=False))
        packed = frames.pack_frame(payload).hex()
        found.append({"name": name, "message": content, "payload": payload.hex(), "frame": packed})
    return {
        "preface": frames.PREFACE.hex(),
        "messages": found,
        "zstd_frame": {"frame": vectors.ZSTD_FRAME.hex(), "message": [8]},
        "state_digests": [
            {
                "map": {key: {"bin": value.hex()} for key, value in content.items()},
                "digest": f"{digest.state_digest(content.items()):016x}",
            }
            for content in vectors.PAIRS
        ],
        "session": [
            {"from": step.sender, "bytes": step.data.hex(), "comment": step.comment} for step in vectors.SESSION
        ],
    }


def vector_text() -> str:
    """Test vectors of the messages, for the page."""
    parts = []
    for name, message in vectors.VECTORS:
        payload = codec.encode(message)
        content = json.dumps(as_json(msgpack.unpackb(payload, raw=False)), ensure_ascii=False)
        body = "\n".join(hex_lines(frames.pack_frame(payload)))
        parts.append(f"**{name}**: `{content}`\n\n```\n{body}\n```")
    return "\n\n".join(parts)


def digest_table() -> str:
    """Test vectors of the state digest, for the page."""
    rows = ["| Map | State digest |", "|---|---|"]
    for content in vectors.PAIRS:
        shown = ", ".join(f"`{key}` = `{value.hex() or '(empty)'}`" for key, value in content.items())
        rows.append(f"| {shown or '(no keys)'} | `{digest.state_digest(content.items()):016x}` |")
    return "\n".join(rows)


def session_text() -> str:
    """The annotated session: sender, bytes and comment of each step."""
    lines = ["```"]
    for step in vectors.SESSION:
        arrow = ">" if step.sender == "client" else "<"
        lines.append(f"# {step.comment}")
        lines += [f"{arrow} {line}" for line in hex_lines(step.data)]
    return "\n".join([*lines, "```"])


def render(page: str) -> str:
    """The page with its generated parts replaced."""
    parts = {
        "client states": diagram(connection.Role.CLIENT),
        "server states": diagram(connection.Role.SERVER),
        "reasons": reasons_table(),
        "digests": digest_table(),
        "vectors": vector_text(),
        "session": session_text(),
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


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    JSON.write_text(render_json(), encoding="utf-8")
