"""Decoding of envelopes, pages and lines: as the API server writes them, unusual ones and broken ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.watch import decoding
from tests.harness.watch_harness import bookmark, event, json_bytes, pod, status


def test_the_bytes_of_the_object_are_kept_for_any_form_of_line() -> None:
    raw = json_bytes(pod("a/x", 7) | {"status": {"phase": "}}"}})
    usual = b'{"type":"MODIFIED","object":' + raw + b"}"
    for line in (
        usual,
        usual + b" ",
        b'{ "type":"MODIFIED","object":' + raw + b"}",
        b'{"object":' + raw + b',"type":"MODIFIED"}',
        b'{"type":"MODIFIED","object":' + raw + b',"extra":{"a":{}}}',
        b'{"extra":1,"type":"MODIFIED","object":' + raw + b"}",
    ):
        decoded = decoding.decode_line(line)
        assert decoded.type == "MODIFIED"
        assert decoded.raw == raw
        metadata = decoded.envelope.metadata
        assert (metadata.namespace, metadata.name, metadata.resource_version) == ("a", "x", "7")


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":null}',
        b'{"type":1,"object":{}}',
        b'{"type":"ADDED","object":{"metadata":{"name":1}}}',
        b'{"type":"ADDED","object":{"metadata":{"name":"\xff"}}}',
        event("ADDED", "a/x", 1)[:-1],
        event("ADDED", "a/x", 1) + b"}",
    ],
)
def test_broken_lines_raise(line: bytes) -> None:
    with pytest.raises(decoding.InvalidInput):
        decoding.decode_line(line)


@given(st.binary(max_size=200))
def test_decoders_raise_nothing_but_invalid_input(data: bytes) -> None:
    for decode in (decoding.decode_line, decoding.decode_page, decoding.ends_initial_events):
        try:
            decode(data)
        except decoding.InvalidInput:
            continue
    decoding.decode_status(data)


def test_only_the_annotation_ends_the_initial_events() -> None:
    line = decoding.decode_line(bookmark(9, ends_initial=True))
    assert decoding.ends_initial_events(line.raw)
    assert not decoding.ends_initial_events(decoding.decode_line(bookmark(9)).raw)
    assert not decoding.ends_initial_events(b'{"metadata":{"annotations":{"k8s.io/initial-events-end":"false"}}}')


def test_a_page_gives_kind_token_and_exact_items() -> None:
    items = [b'{"metadata":{"name":"x"},"b":1, "a":2}', b"{}"]
    body = b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9","continue":"t"},"items":[%s]}'
    page = decoding.decode_page(body % b",".join(items))
    assert (page.api_version, page.kind, page.resource_version, page.continue_token) == ("v1", "Pod", "9", "t")
    assert [bytes(item) for item in page.items] == items
    empty = decoding.decode_page(body.replace(b"[%s]", b"null"))
    assert empty.items == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<html>",
        b'{"kind":"Status","metadata":{}}',
        b'{"kind":"PodList","items":[]}',
        b'{"kind":"PodList","metadata":{"continue":"' + b"x" * 70_000 + b'"},"items":[]}',
        b'{"kind":"PodList","metadata":{"resourceVersion":"' + b"1" * 200 + b'"},"items":[]}',
        b'{"kind":"PodList","metadata":{},"items":[{"metadata":{}}',
    ],
)
def test_broken_pages_raise(body: bytes) -> None:
    with pytest.raises(decoding.InvalidInput):
        decoding.decode_page(body)


def test_status_objects_give_the_reason() -> None:
    expired = decoding.decode_status(status(410, "Expired", "too old"))
    assert expired.says_expired
    assert not expired.says_version_too_large
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    too_large = decoding.decode_status(status(504, "Timeout", "Timeout", causes=causes, retryAfterSeconds=1))
    assert too_large.says_version_too_large
    assert decoding.decode_status(b"404 page not found\n").message == "404 page not found"


@given(st.lists(st.text(alphabet="ab\n{}", max_size=12), max_size=12), st.integers(1, 7))
def test_lines_do_not_depend_on_chunk_borders(parts: list[str], size: int) -> None:
    data = "\n".join(parts).encode()
    splitter = decoding.LineSplitter(1000)
    lines = [line for start in range(0, len(data), size) for line in splitter.feed(data[start : start + size])]
    *complete, rest = data.split(b"\n")
    assert lines == [line for line in complete if line]
    assert splitter.has_rest == bool(rest)


def test_the_line_limit_is_exact() -> None:
    splitter = decoding.LineSplitter(10)
    assert splitter.feed(b"x" * 10 + b"\n") == [b"x" * 10]
    splitter.feed(b"x" * 10)
    with pytest.raises(decoding.InvalidInput, match="longer than 10 bytes"):
        splitter.feed(b"x")


def test_what_json_dumps_writes_is_read_back() -> None:
    value = {"type": "ADDED", "object": pod("a/x", 1)}
    assert decoding.decode_line(json.dumps(value).encode()).envelope.kind == "Pod"
