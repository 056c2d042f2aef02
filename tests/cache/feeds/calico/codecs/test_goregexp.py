"""Regular expressions that Go accepts, and others."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico.codecs import goregexp


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^(eth|ens).*$",
        "((en|wl|ww|sl|ib)[Popsvx].*|(eth|wlan|wwan).*|venet.*)",
        "a*?b+?c??d{2}?e{2,}f{0,1000}",
        "(?i)(?P<name>a)(?<other>b)(?:c)(?-s:d)(?i-s:e)",
        "[]a][^]a][a-][-a][[:alpha:][:^digit:]]",
        r"\d\D\s\S\w\W\b\B\A\z\pL\PN\p{Greek}\p{^Lu}",
        r"\Q**\E*",
        r"\Q unfinished (",
        r"\x41\x{1F600}\0\12\a\f\t\n\r\v\-\_\.",
        "{",
        "a{,5}",
        "a{01}",
        "^*",
        "x(?i)*",
        "(((a{10}){10}){10})",
        "(a{0}){1000}",
    ],
)
def test_valid_expressions(pattern: str) -> None:
    assert goregexp.compiles(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "([",
        "(",
        ")",
        "[a",
        "[]",
        "*",
        "a|*",
        "(*)",
        "a**",
        "a++",
        "a{2}{3}",
        "a{1001}",
        "a{3,2}",
        "((a{10}){10}){11}",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?>a)",
        "(?P=name)",
        "(?P<>a)",
        "(?P<n-m>a)",
        "(?i-)",
        "(?x)",
        r"(a)\1",
        r"\8",
        r"\Z",
        r"\C",
        r"\y",
        "\\",
        r"\é",
        r"\p{Klingon}",
        r"\p{",
        r"\x{110000}",
        r"\x{}",
        r"\x4",
        "[z-a]",
        r"[a-\d]",
        r"[\b]",
        "[[:foo:]]",
    ],
)
def test_invalid_expressions(pattern: str) -> None:
    assert not goregexp.compiles(pattern)


@given(st.text())
def test_any_text_is_accepted_or_rejected(pattern: str) -> None:
    goregexp.compiles(pattern)


@given(st.text())
def test_quoted_text_compiles(text: str) -> None:
    assert goregexp.compiles("".join("\\" + char if char in r"\.+*?()|[]{}^$" else char for char in text))


@pytest.mark.parametrize(
    "pattern", ["(" * 500_000, "[[:" * 300_000, "a?" * 500_000, "[" + "a-b" * 300_000, r"\p{" * 300_000]
)
def test_a_megabyte_is_read_quickly(pattern: str) -> None:
    started = time.process_time()
    goregexp.compiles(pattern)
    assert time.process_time() - started < 3
