"""YAML to JSON: the values of Kubernetes' tools for a table of texts, how streams are split, limits, and places."""

import contextlib
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import yamljson
from tests.harness import yaml_cases

REFUSED_HERE = {"[]: v", "{}: v", "{}: 1}", "[a:]", "{a: a:}", "x: {a:}"}
"""Texts of the table that are refused here. Kubernetes' tools ignore what follows `[]`, and read `a:` as a name."""


def read(text: bytes) -> Any:
    """The value of a text, comparable. None for an error."""
    try:
        return yaml_cases.comparable(yamljson.to_json(text).raw.decode())
    except yamljson.YamlError:
        return None


def read_stream(stream: yamljson.Readable) -> list[Any] | None:
    """The values of all documents, comparable. None for an error."""
    try:
        return [yaml_cases.comparable(document.raw.decode()) for document in yamljson.documents(stream)]
    except yamljson.YamlError:
        return None


class Pieces:
    """A stream that gives few bytes at a time."""

    def __init__(self, text: bytes, size: int) -> None:
        self._stream = io.BytesIO(text)
        self._size = size
        self.given = 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self._stream.read(self._size)
        self.given += len(piece)
        return piece


def test_values_are_those_of_kubernetes_tools() -> None:
    table = yaml_cases.table()["documents"]
    found = {text: read(text.encode()) for text in table}
    expected = {text: None if value is None else yaml_cases.comparable(value) for text, value in table.items()}
    assert len(table) > 4_000
    assert {text for text in table if found[text] != expected[text]} == REFUSED_HERE
    assert {text for text in REFUSED_HERE if found[text] is not None} == set()


@pytest.mark.parametrize("size", [1, 2, 5, 100_000])
def test_streams_are_split_as_kubectl_does(size: int) -> None:
    table = yaml_cases.table()["streams"]
    assert len(table) > 20
    for text, expected in table.items():
        found = read_stream(Pieces(text.encode(), size))
        assert found == (None if expected is None else [yaml_cases.comparable(each) for each in expected]), text


def test_utf_16_is_read() -> None:
    text = "a: é\r\n---\nb: 😀\n"
    for encoded in (text.encode("utf-16"), b"\xfe\xff" + text.encode("utf-16-be")):
        assert read_stream(io.BytesIO(encoded)) == read_stream(io.BytesIO(text.encode()))
        assert yamljson.decode(encoded) == {"a": "é"}


def test_one_document_is_read_at_a_time() -> None:
    document = b"a: " + b"x" * 100_000 + b"\n---\n"
    stream = Pieces(document * 20, 1 << 16)
    found = yamljson.documents(stream)
    next(found)
    assert stream.given < 2 * len(document) + 2 * (1 << 16)
    assert [each.number for each in found] == list(range(2, 21))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: [\nc: 2\n", 4, "did not find expected"),
        ("a: 1\n---\nb: 2\nc: *x\n", 4, "unknown anchor 'x' referenced"),
        ("a: 1\n---\nb: &x\n  c: *x\n", 4, "anchor 'x' value contains itself"),
        ("a: 1\n---\n\n[1]: 2\n", 4, "cannot be the name of a member"),
        ("a: 1\n---\n\n<<: 2\n", 4, "map merge requires map"),
        ("a: 1\n---\nb: !!int x\n", 3, "cannot decode 'x' as a !!int"),
        ("a: 1\n---\nb: .inf\n", 3, "not a number in JSON: inf"),
        ("a: 1\n---\n~: 1\n", 3, "unsupported map key: null"),
        ("a: 1\n---\n18446744073709551615: 1\n", 3, "unsupported map key: 18446744073709551615"),
        ("a: 1\n---\nb: !!binary x\n", 3, "invalid base64"),
        ("a: 1\n---\nb: 1\nc: \x07\n", 4, "control characters are not allowed"),
        ("a: 1\n---\nb: 1\n\ufeffc: 2\n", 4, "byte order mark within a document"),
        ("a: 1\n--- b\n", 2, "invalid document separator: 'b' after ---"),
    ],
)
def test_errors_have_the_line_in_the_stream(text: str, line: int, problem: str) -> None:
    for stream in (io.BytesIO(text.encode()), Pieces(text.encode(), 3)):
        with pytest.raises(yamljson.YamlError, match=problem) as caught:
            list(yamljson.documents(stream))
        assert caught.value.line == line
        assert str(caught.value).startswith(f"line {line}: ")


def test_invalid_bytes_have_a_line() -> None:
    for text in (b"a: 1\nb: \xff\n", b"a: 1\nb: 1\n" * 20_000 + b"c: \xff\n"):
        with pytest.raises(yamljson.YamlError) as caught:
            yamljson.to_json(text)
        assert caught.value.line == text.count(b"\n")
        with pytest.raises(yamljson.YamlError) as caught:
            list(yamljson.documents(io.BytesIO(text)))
        assert caught.value.line == text.count(b"\n")
    with pytest.raises(yamljson.YamlError, match="invalid UTF-16"):
        yamljson.to_json(b"\xff\xfea")


def test_duplicate_keys_and_text_after_the_end_are_noted() -> None:
    text = "a: 1\n---\nb: 1\nb: 2\nc: {d: 1, 'd': 2}\n...\ne: 3\n---\nf: 1\n"
    first, second, third = yamljson.documents(io.BytesIO(text.encode()))
    assert (first.notes, third.notes) == ((), ())
    assert second.raw == b'{"b":2,"c":{"d":2}}'
    assert [(note.line, note.text) for note in second.notes] == [
        (4, "duplicate key 'b': the last one counts"),
        (5, "duplicate key 'd': the last one counts"),
        (6, "text after the end of the document is ignored"),
    ]


def test_notes_are_bounded() -> None:
    assert len(yamljson.to_json(b"a: 1\n" * 1_000).notes) == yamljson.NOTES_LIMIT


def test_a_merge_is_no_duplicate() -> None:
    assert yamljson.to_json(b"a: &a {x: 1}\nb: {<<: *a, x: 2}\n").notes == ()


@pytest.mark.parametrize("begin", ["[", "{a: ", "- ", "? "])
def test_depth_is_bounded(begin: str) -> None:
    with pytest.raises(yamljson.YamlError, match=f"more than {yamljson.DEPTH_LIMIT} levels deep|name of a member"):
        yamljson.to_json(begin.encode() * 20_000)
    deepest = "[" * yamljson.DEPTH_LIMIT + "]" * yamljson.DEPTH_LIMIT
    assert yamljson.to_json(deepest.encode()).raw == deepest.encode()


def test_nested_merges_are_bounded() -> None:
    with pytest.raises(yamljson.YamlError, match="nested more than 16 levels deep"):
        yamljson.to_json(b"{<<: " * 17 + b"{}" + b"}" * 17)
    assert yamljson.to_json(b"{<<: " * 16 + b"{a: 1}" + b"}" * 16).raw == b'{"a":1}'


def test_many_small_aliases_are_refused() -> None:
    levels = "a: &a [" + "x," * 10 + "]\n"
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        levels += f"{name}: &{name} [" + f"*{before}," * 10 + "]\n"
    with pytest.raises(yamljson.YamlError, match="document contains excessive aliasing"):
        yamljson.to_json(levels.encode())


def test_few_large_aliases_are_refused() -> None:
    text = b"a: &a '" + b"x" * (1 << 20) + b"'\nb: [" + b"*a," * 70 + b"]\n"
    with pytest.raises(yamljson.YamlError, match=f"aliases stand for more than {yamljson.ALIAS_BYTES_LIMIT} bytes"):
        yamljson.to_json(text)


def test_members_are_in_the_order_of_their_names() -> None:
    assert yamljson.to_json("é: 1\na: 2\n'a!': 3\nA: 4\n".encode()).raw == '{"A":4,"a":2,"a!":3,"é":1}'.encode()


@given(st.text(alphabet="ab1.:,?-[]{}#&*!|>'\"%@`~<= \n\t\u2028é\x00", max_size=40))
def test_any_text_gives_json_or_an_error(text: str) -> None:
    for mode in (yamljson.to_json, lambda data: list(yamljson.documents(io.BytesIO(data)))):
        with contextlib.suppress(yamljson.YamlError):
            found = mode(text.encode())
            for document in found if isinstance(found, list) else [found]:
                json.loads(document.raw)
