"""Tests of loadtest.apiserver.listing: options of list and watch, and continue tokens."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.apiserver import listing
from loadtest.apiserver.errors import BadRequest, InvalidOptions
from loadtest.apiserver.listing import Match


@given(st.integers(1, 2**63), st.text(max_size=60))
def test_tokens_round_trip(version: int, key: str) -> None:
    assert listing.parse_token(listing.continue_token(version, key)) == (version, key)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_any_other_text_is_no_token(text: str) -> None:
    with pytest.raises(BadRequest):
        listing.parse_token(text)


def test_watch_list() -> None:
    query = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "resourceVersion": "7"}
    parsed = listing.parse(query, watch_list=True)
    assert (parsed.watch, parsed.initial_events, parsed.match, parsed.version) == (True, True, Match.NOT_OLDER_THAN, 7)
    with pytest.raises(InvalidOptions, match="WatchList"):
        listing.parse(query, watch_list=False)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"resourceVersionMatch": "Exact"}, "resourceVersionMatch"),
        ({"resourceVersionMatch": "Newest", "resourceVersion": "1"}, "resourceVersionMatch"),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "0"}, "resourceVersionMatch"),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "1", "continue": "x"}, "resourceVersionMatch"),
        ({"sendInitialEvents": "true"}, "sendInitialEvents"),
        ({"watch": "true", "sendInitialEvents": "true"}, "resourceVersionMatch"),
        ({"watch": "true", "resourceVersionMatch": "NotOlderThan", "resourceVersion": "1"}, "resourceVersionMatch"),
    ],
)
def test_options_that_contradict_each_other(query: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        listing.parse(query, watch_list=True)
    assert caught.value.code == 422
    assert caught.value.details["causes"][0]["field"] == field


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "-1"},
        {"limit": "many"},
        {"resourceVersion": "1" * 30},
        {"resourceVersion": "²"},
        {"labelSelector": "a in (b)"},
        {"labelSelector": "a!=b"},
        {"labelSelector": "a=b", "limit": "1"},
        {"labelSelector": "a=b", "watch": "true"},
        {"continue": "x", "resourceVersion": "5"},
    ],
)
def test_options_that_cannot_be_parsed(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        listing.parse(query, watch_list=True)
