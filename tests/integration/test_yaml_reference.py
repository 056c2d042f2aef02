"""The reader of YAML beside the library of Kubernetes' tools: the recorded table, and random texts."""

import io
import re

import pytest

from cache import yamljson
from tests.harness import yaml_cases

pytestmark = pytest.mark.go

TEXTS = 40_000
REFUSED_HERE = (
    "a list or mapping cannot be the name of a member",  # the library reads it and ignores the rest
    "found unexpected ':'",  # the library reads [a:] as a text
    "did not find expected whitespace or line break",  # the library reads !] as a tag
    "not a number in JSON",  # the library does not look at the value if the same key comes again
)
"""What only this reader refuses."""


def test_the_recorded_table_is_what_the_library_gives(yamlref: str) -> None:
    assert yaml_cases.record(yamlref) == yaml_cases.table()


def read(text: bytes, mode: str) -> tuple[list[yamljson.Document], str]:
    """The documents, and what is wrong."""
    try:
        if mode == "documents":
            return [yamljson.to_json(text)], ""
        return list(yamljson.documents(io.BytesIO(text))), ""
    except yamljson.YamlError as error:
        return [], error.problem


@pytest.mark.parametrize("mode", ["documents", "streams"])
def test_random_texts_have_the_library_s_values(mode: str, yamlref: str) -> None:
    """An error of one of both may differ in kind. A value must not."""
    texts = list(yaml_cases.random_documents(seed=20, count=TEXTS))
    read_by_both = refused_here = 0
    for text, expected in zip(texts, yaml_cases.reference(yamlref, mode, texts), strict=True):
        if mode == "streams" and text.lstrip()[:1] == b"{":
            continue  # JSON is for the caller of the reader
        if re.search(rb"!\S*[,\]\[{}]|-0", text):
            continue  # libyaml ends tags earlier; for the library 0.0 and -0.0 are one key
        documents, problem = read(text, mode)
        if problem:
            refused_here += "error" not in expected and not problem.startswith(REFUSED_HERE)
            continue
        if "error" in expected:
            # The library refuses a ? within a text in flow style, and it looks further after the document's end.
            is_after_end = any("after the end" in note.text for document in documents for note in document.notes)
            assert b"?" in text or is_after_end, (text, documents, expected)
            continue
        if any("duplicate" in note.text for document in documents for note in document.notes):
            continue  # 1 and 1.0 are different keys for the library, and either of them wins
        assert [yaml_cases.comparable(document.raw.decode()) for document in documents] == [
            yaml_cases.comparable(each) for each in expected["json"]
        ], text
        read_by_both += 1
    assert read_by_both > TEXTS / 4
    assert refused_here < TEXTS / 1_000  # what follows a document, which the library ignores
