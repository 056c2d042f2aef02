"""UIDs of derived objects."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico.codecs import uids
from tests.harness import builders


def test_a_recorded_uid() -> None:
    assert uids.reversed_uid(builders.UID) == builders.DERIVED_UID


@given(st.uuids(version=4))
def test_reversing_twice_gives_the_uid(uid: uuid.UUID) -> None:
    derived = uids.reversed_uid(str(uid))
    assert uids.reversed_uid(derived) == str(uid)
    assert uuid.UUID(derived).version == 4


@pytest.mark.parametrize("text", ["", "x", builders.UID[:-1]])
def test_invalid_uids(text: str) -> None:
    with pytest.raises(ValueError, match="UUID"):
        uids.reversed_uid(text)
