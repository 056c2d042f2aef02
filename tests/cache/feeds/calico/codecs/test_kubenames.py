"""Kubernetes' rules for names, labels and annotations."""

import base64

import pytest

from cache.feeds.calico.codecs import kubenames


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ("a", True),
        ("example.com/a_b.c-d", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("", False),
        ("/a", False),
        ("a/", False),
        ("Example.com/a", False),
        ("a/b/c", False),
        ("-a", False),
        ("a ", False),
    ],
)
def test_label_keys(text: str, is_valid: bool) -> None:
    assert kubenames.is_label_key(text) is is_valid


@pytest.mark.parametrize(
    ("text", "is_valid"), [("", True), ("A_1", True), ("a" * 64, False), ("a.", False), ("é", False)]
)
def test_label_values(text: str, is_valid: bool) -> None:
    assert kubenames.is_label_value(text) is is_valid


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ("http", True),
        ("a-1", True),
        ("1a", True),
        ("80", False),
        ("HTTP", False),
        ("a--b", False),
        ("-a", False),
        ("a" * 16, False),
    ],
)
def test_port_names(text: str, is_valid: bool) -> None:
    assert kubenames.is_port_name(text) is is_valid


def test_wireguard_keys() -> None:
    key = base64.b64encode(b"k" * 32).decode()
    assert kubenames.is_wireguard_key(key)
    assert kubenames.is_wireguard_key(key[:10] + "\n" + key[10:])
    assert not kubenames.is_wireguard_key(key.rstrip("="))
    assert not kubenames.is_wireguard_key(base64.b64encode(b"k" * 31).decode())
    assert not kubenames.is_wireguard_key("é" * 44)


@pytest.mark.parametrize(
    ("metadata", "is_valid"),
    [
        ({}, True),
        ({"name": "a.b"}, True),
        ({"name": "A"}, False),
        ({"name": "a." * 127}, False),
        ({"labels": {"a": "not a value"}}, False),
        ({"annotations": {"UPPER.com/A": "anything: ü"}}, True),
        ({"annotations": {"not a key": ""}}, False),
        ({"annotations": {"a": "x" * (256 * 1024)}}, False),
    ],
)
def test_metadata(metadata: dict[str, object], is_valid: bool) -> None:
    assert (kubenames.metadata_problem(metadata) == "") is is_valid
