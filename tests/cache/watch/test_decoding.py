"""Decoding of envelopes, pages and lines: as the API server writes them, unusual ones and broken ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import resources
from cache.watch import decoding
from tests.harness.watch_harness import PODS, bookmark, event, json_bytes, pod, status


def decode_page(body: bytes) -> decoding.ListPage:
    return decoding.decode_page(body, PODS)


def split_page(body: bytes) -> decoding.ListPage:
    steps = decoding.split_page(body, PODS)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            page: decoding.ListPage = end.value
            return page


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
    for decode in (decoding.decode_line, decode_page, split_page, decoding.ends_initial_events):
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
    page = decode_page(body % b",".join(items))
    assert (page.api_version, page.kind, page.resource_version, page.continue_token) == ("v1", "Pod", "9", "t")
    assert [bytes(item) for item in page.items] == items
    empty = decode_page(body.replace(b"[%s]", b"null"))
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
        decode_page(body)


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


DEEP = b"[" * 13_000 + b"]" * 13_000
BAD_VALUES = {
    "a lone surrogate": b'"\\ud800"',
    "NaN": b"NaN",
    "too many levels": DEEP,
    "a control character": b'"\x01"',
    "an unknown escape": b'"\\q"',
    "an escaped quotation mark and brackets": b'"\\ud800 \\" }]}"',
}


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
def test_one_bad_object_of_a_page_is_found_by_its_brackets(bad: bytes) -> None:
    items = [json_bytes(pod(f"a/{name}", 5)) for name in "xyz"]
    broken = b'{ "metadata" : {"labels":{"a":"]"},"name":"bad","namespace":"a"}, "spec":[' + bad + b"]}"
    body = b'{"kind":"PodList","metadata":{"resourceVersion":"9","continue":"t"},"items":[%s,%s , %s,%s],"x":{}}\n' % (
        items[0],
        items[1],
        broken,
        items[2],
    )
    with pytest.raises(decoding.InvalidInput):
        decode_page(body)
    page = split_page(body)
    assert (page.kind, page.resource_version, page.continue_token) == ("Pod", "9", "t")
    assert [bytes(item) for item in page.items] == [items[0], items[1], broken, items[2]]
    with pytest.raises(decoding.InvalidObject) as caught:
        decoding.decode_item(page.items[2])
    assert (caught.value.namespace, caught.value.name) == ("a", "bad")


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_whole_line_with_a_bad_object_names_it(bad: bytes) -> None:
    for line in (
        b'{"type":"MODIFIED","object":{"metadata":{"name":"bad","namespace":"a"},"spec":' + bad + b"}}",
        b'{"object": {"spec":' + bad[:100] + b',"metadata":{"namespace":"a","name":"bad"}},"type": "DELETED"}',
    ):
        if bad is not DEEP or b"MODIFIED" in line:
            with pytest.raises(decoding.InvalidObject) as caught:
                decoding.decode_line(line)
            assert (caught.value.namespace, caught.value.name) == ("a", "bad")


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"MODIFIED","object":{"metadata":{"name":"x"},"spec":NaN}',
        b'{"type":"MODIFIED","object":{"metadata":{"name":"x"},"spec":"\\ud800}}',
        b'{"type":"BOOKMARK","object":{"metadata":{"name":"x"},"spec":NaN}}',
        b'{"type":"ERROR","object":{"spec":NaN}}',
        b'{"type":"ADDED","object":{"metadata":{"name":"x"},"spec":NaN}}' + b" " * 100_000 + b"{",
    ],
)
def test_a_line_that_is_cut_or_reports_no_object_is_broken_as_a_whole(line: bytes) -> None:
    with pytest.raises(decoding.InvalidInput) as caught:
        decoding.decode_line(line)
    assert not isinstance(caught.value, decoding.InvalidObject)


@given(st.lists(st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"a", b" ", b'"a":']), max_size=60))
def test_the_scan_of_a_page_ends_for_any_input(pieces: list[bytes]) -> None:
    for body in (b"".join(pieces), b'{"kind":"PodList","items":[%s],"metadata":{}}' % b"".join(pieces)):
        try:
            page = split_page(body)
        except decoding.InvalidInput:
            continue
        assert page.size_bytes == len(body)


@pytest.mark.parametrize("piece", [b'"', b'\\"', b'"\\', b"[", b"{", b"[]", b'{"a":', b'"",', b'"a":1,'])
def test_the_scan_takes_steps_in_proportion_to_the_input(piece: bytes) -> None:
    """Strings without an end must not be looked at again from each quotation mark in them."""

    def steps(pieces: int) -> int:
        seen = 0
        scan = decoding.split_page(b'{"items":[{"a":' + piece * pieces, PODS)
        try:
            for _ in scan:
                seen += 1
        except decoding.InvalidInput:
            return seen
        return seen

    assert steps(400_000) <= 2 * 400_000 / decoding._BRACKETS_PER_STEP + 1


@pytest.mark.parametrize(
    ("type", "kind", "is_possible"),
    [
        ("v1/configmaps", "ConfigMap", True),
        ("v1/configmaps", "Pod", False),
        ("v1/endpoints", "Endpoints", True),
        ("networking.k8s.io/v1/ingresses", "Ingress", True),
        ("networking.k8s.io/v1/networkpolicies", "NetworkPolicy", True),
        ("networking.k8s.io/v1/networkpolicies", "Ingress", False),
        ("crd.projectcalico.org/v1/blockaffinities", "BlockAffinity", True),
        ("projectcalico.org/v3/ippools", "IPPool", True),
        ("projectcalico.org/v3/caliconodestatuses", "CalicoNodeStatus", True),
        ("projectcalico.org/v3/ippools", "Tier", False),
        ("metrics.k8s.io/v1beta1/pods", "PodMetrics", True),
        ("example.com/v1/sheep", "Flock", True),
    ],
)
def test_the_kind_of_a_list_fits_its_type_where_names_are_regular(type: str, kind: str, is_possible: bool) -> None:
    body = b'{"kind":"%sList","metadata":{},"items":[]}' % kind.encode()
    if is_possible:
        decoding.decode_page(body, resources.ResourceType.parse(type))
    else:
        with pytest.raises(decoding.InvalidInput, match=kind):
            decoding.decode_page(body, resources.ResourceType.parse(type))


def test_a_page_of_millions_of_tiny_items_is_not_decoded_at_once() -> None:
    decoding.check_density(b",".join([json_bytes(pod("a/x", 7))] * 20_000))
    dense = json_bytes(pod("a/x", 7) | {"numbers": [1] * 1_000_000})
    page = b'{"kind":"PodList","metadata":{},"items":[%s]}' % dense
    with pytest.raises(decoding.InvalidInput):
        decoding.check_density(page)
    assert [bytes(item) for item in split_page(page).items] == [dense]  # it is looked at in steps, and not refused
    for item in (b"0", b"{}", b'""', b" [ ] "):
        body = b'{"kind":"PodList","metadata":{},"items":[%s]}' % b",".join([item] * 600_000)
        with pytest.raises(decoding.InvalidInput, match="too many values"):
            decoding.check_density(body)
        with pytest.raises(decoding.InvalidInput, match="more than 100000 items"):
            split_page(body)


def test_bookmarks_and_errors_are_small() -> None:
    annotations = ",".join(f'"a{number}":""' for number in range(10_000))
    with pytest.raises(decoding.InvalidInput, match="longer than"):
        decoding.ends_initial_events(b'{"metadata":{"annotations":{%s}}}' % annotations.encode())
    causes = ",".join(["{}"] * 100_000)
    assert decoding.decode_status(b'{"code":410,"details":{"causes":[%s]}}' % causes.encode()).details is None
