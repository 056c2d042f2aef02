"""docs/protocol.md: its generated parts are up to date, and a client written from the page alone works."""

import ast
import asyncio
import inspect
import json
import re
from typing import Any

import msgpack
import pytest

from clients import differ, testing
from protocol import digest, errors, messages, reasons, subscriptions
from protocol.native import codec, connection, frames
from tests.docs import protocol_page, stranger, vectors
from typha.worker import protocol_adapters

REWRITE = "run `python -m tests.docs.protocol_page`, and look at what it changed"


def page() -> str:
    return protocol_page.PAGE.read_text(encoding="utf-8")


def published() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(protocol_page.JSON.read_text(encoding="utf-8"))
    return content


def from_json(value: Any) -> Any:
    match value:
        case {"bin": str(digits)}:
            return bytes.fromhex(digits)
        case {"int": str(decimal)}:
            return int(decimal)
        case dict():
            return {key: from_json(item) for key, item in value.items()}
        case list():
            return [from_json(item) for item in value]
        case _:
            return value


def session_on_the_page(arrow: str) -> bytes:
    """One side's bytes, read from the page."""
    part = page().partition("<!-- begin session -->")[2].partition("<!-- end session -->")[0]
    return bytes.fromhex("".join(re.findall(rf"^{arrow} ([0-9a-f]+)$", part, re.MULTILINE)))


def test_the_page_is_up_to_date() -> None:
    assert page() == protocol_page.render(page()), REWRITE


def test_the_vectors_are_up_to_date() -> None:
    assert published() == json.loads(protocol_page.render_json()), REWRITE


def test_every_message_has_a_section_and_a_vector() -> None:
    for number, encoder in zip(codec.MessageType, codec._ENCODERS, strict=True):
        name = codec.message_name(encoder)
        assert f"| {int(number)} | {name} |" in page()
        assert f"{name}: `[{int(number)}" in page()
    assert {type(vector.message) for vector in vectors.VECTORS} == set(codec._ENCODERS)


def test_the_vectors_are_what_they_say() -> None:
    for vector, entry in zip(vectors.VECTORS, published()["messages"], strict=True):
        payload = bytes.fromhex(entry["payload"])
        assert codec.decode(payload) == vector.message
        assert msgpack.unpackb(payload, raw=False) == from_json(entry["message"])
        assert bytes.fromhex(entry["frame"]) == stranger.frame(from_json(entry["message"]))


def test_limits_on_the_page_are_those_of_the_code() -> None:
    limits = page().partition("## 9. Limits")[2].partition("## 10.")[0]
    assert frames.MAX_FRAME_BYTES == 16 * 1024 * 1024
    assert "16 MiB" in limits
    assert frames.MAX_HELLO_FRAME_BYTES == 64 * 1024
    assert "64 KiB" in limits
    assert frames.MAX_CLIENT_FRAME_BYTES == 2 * 1024
    assert "2 KiB" in limits
    for limit in (codec.MAX_NAME_CHARS, codec.MAX_KEY_CHARS, codec.MAX_LIST_LENGTH, codec.MAX_UPDATES):
        assert f" {limit:,}" in limits
    assert f"at most {codec.MAX_CHUNK_DIGESTS:,}" in page()
    assert f" {codec.MAX_CHUNK_DIGESTS:,}" in limits
    assert f" {codec.MAX_CHUNKS:,}" in limits


def test_names_on_the_page_are_those_of_the_code() -> None:
    for feature in messages.Feature:
        assert f"| `{feature.value}` |" in page()
    for status in messages.SyncStatus:
        assert f"{int(status)} {status.label} (" in page()
    assert frames.PREFACE.hex(" ") in page()
    assert frames.PREFACE == stranger.PREFACE
    assert vectors.ZSTD_FRAME.hex() in page().replace(" ", "")


LETTERS = "HTFMDOPRSVEUGKBLZ"


def rules_on_the_page() -> dict[str, str]:
    """Whom each rule binds."""
    return protocol_page.rules(page())


def test_rules_are_numbered_without_gaps() -> None:
    numbers: dict[str, list[int]] = {}
    for rule in rules_on_the_page():
        numbers.setdefault(rule[0], []).append(int(rule[1:]))
    assert set(numbers) == set(LETTERS)
    for letter, found in numbers.items():
        assert found == list(range(1, len(found) + 1)), letter


def test_the_kit_checks_rules_of_the_page() -> None:
    checked = protocol_page.checked_rules()
    assert checked["clients"] | checked["servers"] <= rules_on_the_page().keys()
    conformance = protocol_page.CONFORMANCE.read_text(encoding="utf-8")
    assert conformance == protocol_page.render_conformance(conformance, page()), REWRITE


def test_each_rule_has_a_check_or_a_reason_why_not() -> None:
    unchecked = {
        (rule, side)
        for side, checked in protocol_page.checked_rules().items()
        for rule, binds in rules_on_the_page().items()
        if binds in (side[:-1], "both") and rule not in checked
    }
    assert protocol_page.unchecked_rules(protocol_page.CONFORMANCE.read_text(encoding="utf-8")) == unchecked


def test_citations_of_rules_on_the_page() -> None:
    known = rules_on_the_page()
    cited = re.findall(rf"(?<![\w`-])([{LETTERS}]\d+)(?![\w`-])", page())
    assert len(cited) > 60
    assert [rule for rule in cited if rule not in known] == []


def read_as_client(data: bytes) -> connection.Connection:
    """Takes what a server sends, as our client does."""
    ours, map_of_ours = connection.Connection(connection.Role.CLIENT), differ.Differ()
    ours.receive_data(data)
    while (message := ours.next_event()) is not None:
        map_of_ours.receive(message)
    return ours


@pytest.mark.parametrize("case", published()["rejected_by_clients"], ids=lambda case: f"{case['rule']} {case['name']}")
def test_our_client_rejects_what_it_must(case: dict[str, str]) -> None:
    assert rules_on_the_page()[case["rule"]] in ("client", "both")
    before, data = bytes.fromhex(case["before"]), bytes.fromhex(case["bytes"])
    read_as_client(before)
    if case["rule"] == "E5":  # that depends on what was asked for: clients/conformance checks it
        read_as_client(before + data)
        return
    with pytest.raises(errors.RemoteProtocolError):
        read_as_client(before + data)


@pytest.mark.parametrize("case", published()["rejected_by_servers"], ids=lambda case: f"{case['rule']} {case['name']}")
def test_our_server_rejects_what_it_must(case: dict[str, str]) -> None:
    assert rules_on_the_page()[case["rule"]] in ("server", "both")
    offer = protocol_adapters.Offer(
        frozenset({"workloads"}), bytes(16), ping_interval_seconds=1.0, max_frame_bytes=1 << 20
    )
    adapter = protocol_adapters.NativeAdapter(offer, 1)
    list(adapter.receive(bytes.fromhex(case["before"])))
    reason = ""
    try:
        [event] = adapter.receive(bytes.fromhex(case["bytes"]))
        assert isinstance(event, protocol_adapters.Refused)
        reason = event.reason
    except errors.RemoteProtocolError as error:
        reason = error.reason
    assert reason == (case["reason"] or "bad-preface")


def test_the_refused_session() -> None:
    offer = protocol_adapters.Offer(
        frozenset({"workloads"}), bytes(16), ping_interval_seconds=1.0, max_frame_bytes=1 << 20
    )
    said = {"client": b"", "server": b""}
    for step in published()["refused_session"]:
        said[step["from"]] += bytes.fromhex(step["bytes"])
    adapter = protocol_adapters.NativeAdapter(offer, 1)
    [refusal] = adapter.receive(said["client"])
    assert isinstance(refusal, protocol_adapters.Refused)
    assert adapter.goodbye(refusal) == said["server"]


def test_reasons_that_travel_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (yes|no) \| (\w*) *\|", page(), re.MULTILINE)
    assert [reason for reason, *_ in rows] == [reason.value for reason in reasons.DisconnectReason]
    travelling = {reason for reason, travels, sender in rows if travels == "yes" and sender == "server"}
    assert travelling == {reason.value for reason in reasons.GOODBYES}
    assert {case["reason"] for case in published()["rejected_by_servers"]} - {""} < travelling


async def test_the_transcript_to_try() -> None:
    text = page().partition("<!-- begin transcript -->")[2].partition("<!-- end transcript -->")[0]
    script = text.strip().removeprefix("```bash").removesuffix("```")
    async with testing.Server(feeds={"workloads": {"/k": b"v"}}) as server:
        port = server.address.rpartition(":")[2]
        assert script.count("/5473") == 1
        shell = await asyncio.create_subprocess_exec(
            "bash", "-c", script.replace("/5473", f"/{port}"), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(shell.communicate(), 180)
        assert shell.returncode == 0
        assert output.decode().strip() in page()
        assert bytes.fromhex(output.decode()) == frames.PREFACE
        [hello] = server.hellos
        assert (hello.feed, hello.agent) == ("workloads", "try")


def test_the_stranger_knows_nothing_of_this_project() -> None:
    tree = ast.parse(inspect.getsource(stranger))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"hashlib", "struct", "msgpack", "zstandard"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_the_digests_on_the_page() -> None:
    for entry in published()["state_digests"]:
        assert f"{stranger.digest(from_json(entry['map'])):016x}" == entry["digest"]
        assert f"`{entry['digest']}`" in page()


@pytest.mark.parametrize("piece", [1, 10_000])
def test_a_stranger_reads_the_session_on_the_page(piece: int) -> None:
    client = stranger.Stranger()
    sent = session_on_the_page("<")
    for start in range(0, len(sent), piece):
        client.receive(sent[start : start + piece])
    assert client.seen == [2, 8, 3, 4, 4, 5, 7, 6, 8, 7, 6, 7, 3, 4, 5, 7, 10]
    assert client.map == {"/core/v1/nodes//n1": "é".encode()}
    assert client.statuses == [2, 3, 2, 2]
    assert client.goodbye == ["shutting-down", "the server is draining", 1500]
    pongs = stranger.frame([9, 0]) + stranger.frame([9, 42])
    assert client.to_send == pongs
    assert session_on_the_page(">").endswith(pongs[-8:])


def test_both_ends_of_ours_accept_the_session_on_the_page() -> None:
    for role, arrow in ((connection.Role.CLIENT, "<"), (connection.Role.SERVER, ">")):
        ours = connection.Connection(role)
        ours.receive_data(session_on_the_page(arrow))
        received = []
        while (message := ours.next_event()) is not None:
            received.append(message)
        assert len(received) == sum(
            step.sender == ("client" if arrow == ">" else "server") and step.data != frames.PREFACE
            for step in vectors.SESSION
        )


@pytest.mark.parametrize("piece", [1, 10_000])
@pytest.mark.parametrize("session", [vectors.RESUMED_SESSION, vectors.RESUMED_BY_DIGESTS], ids=["position", "digests"])
def test_our_client_reads_the_resumed_sessions(session: list[vectors.Step], piece: int) -> None:
    position = messages.ResumePosition(vectors.INCARNATION, 40)
    content = {vectors.POD: vectors.POD_VALUE, vectors.NODE: vectors.NODE_VALUE}
    expected = {vectors.POD: vectors.NEW_POD_VALUE}
    if session is vectors.RESUMED_BY_DIGESTS:
        position, content = position._replace(sequence=42), expected
        expected = {vectors.POD: vectors.NEW_POD_VALUE, vectors.NODE: vectors.NODE_VALUE}
    ours, map_of_ours = connection.Connection(connection.Role.CLIENT), differ.Differ()
    updates = [messages.Update(key, value, "1", 1) for key, value in content.items()]
    map_of_ours.restore(updates, position=position, chunks=2)
    hello = messages.ClientHello("workloads", "my-agent", features=frozenset({"resume", "chunk-digests"}))
    ours.send(map_of_ours.resuming(hello))
    said = {sender: b"".join(step.data for step in session if step.sender == sender) for sender in ("client", "server")}
    assert ours.data_to_send() == said["client"]
    for start in range(0, len(said["server"]), piece):
        ours.receive_data(said["server"][start : start + piece])
        while (message := ours.next_event()) is not None:
            batch = map_of_ours.receive(message)
            for update in batch.updates if batch is not None else ():
                content = {key: value for key, value in content.items() if key != update.key}
                if update.value is not None:
                    content[update.key] = update.value
    assert content == expected
    assert map_of_ours.digest == digest.state_digest(expected.items())
    assert map_of_ours.position is not None
    assert map_of_ours.position.sequence == ours.sequence


@pytest.mark.parametrize("piece", [1, 10_000])
def test_our_client_reads_the_session_with_a_subscription(piece: int) -> None:
    session = vectors.SUBSCRIBED_SESSION
    said = {sender: b"".join(step.data for step in session if step.sender == sender) for sender in ("client", "server")}
    hello = messages.ClientHello(
        "workloads",
        "my-agent",
        node="n1",
        features=frozenset({"positions", "subscriptions"}),
        subscription=subscriptions.Subscription(kinds=("core/v1/pods", "core/v1/services"), own_node=True),
    )
    ours, map_of_ours = connection.Connection(connection.Role.CLIENT), differ.Differ()
    ours.send(map_of_ours.resuming(hello))
    for start in range(0, len(said["server"]), piece):
        ours.receive_data(said["server"][start : start + piece])
        while (message := ours.next_event()) is not None:
            map_of_ours.receive(message)
            if isinstance(message, messages.Status | messages.Updates) and message.sequence in (43, 51):
                ours.send(messages.Applied(message.sequence))
    assert ours.data_to_send() == said["client"]
    assert map_of_ours.digest == digest.state_digest([(vectors.SERVICE, b'{"kind":"Service","x":1}')])


async def test_a_stranger_follows_a_server() -> None:
    content = {f"/core/v1/pods/default/web-{number}": b'{"kind":"Pod"}' * 30 for number in range(1000)}
    async with testing.Server(feeds={"pods": content}, ping_interval_seconds=0.05) as server:
        host, _, port = server.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        client = stranger.Stranger()
        writer.write(stranger.hello("pods"))
        async with asyncio.timeout(180):
            while 2 not in client.statuses:
                client.receive(await reader.read(1000))
            assert client.map == content
            server.put("pods", "/new", b"")
            server.delete("pods", "/core/v1/pods/default/web-7")
            while 8 not in client.seen or "/new" not in client.map or len(client.map) != 1000:
                client.receive(await reader.read(1000))
            writer.write(client.to_send)
            server.goodbye("shutting-down", "bye", retry_after_seconds=2)
            while client.goodbye is None:
                client.receive(await reader.read(1000))
        assert client.map == server.feeds["pods"].content
        assert client.goodbye == ["shutting-down", "bye", 2000]
        writer.close()
        await writer.wait_closed()
