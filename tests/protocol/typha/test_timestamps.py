"""Go's encoding of times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.typha import timestamps
from tests.protocol.typha import test_codec


@given(st.integers(min_value=-(2**62), max_value=2**62))
def test_time_round_trip(nanoseconds: int) -> None:
    data = timestamps.from_unix_nanoseconds(nanoseconds)
    timestamps.check(data)
    assert timestamps.to_unix_nanoseconds(data) == nanoseconds


@pytest.mark.parametrize("name", [name for name in test_codec.VECTORS if name.startswith("ping-")])
def test_recorded_times_are_decoded(name: str) -> None:
    field = test_codec.VECTORS[name]["fields"]["Timestamp"]
    if field is None:
        assert timestamps.to_unix_nanoseconds(b"") == -62_135_596_800 * 10**9
        return
    data = bytes.fromhex(field["payloadHex"])
    timestamps.check(data)
    nanoseconds = field["unixSec"] * 10**9 + field["nsec"]
    assert timestamps.to_unix_nanoseconds(data) == nanoseconds
    assert (timestamps.from_unix_nanoseconds(nanoseconds) == data) == field["isUTC"]


@pytest.mark.parametrize(
    "data", [b"", b"\x01" + bytes(13), b"\x01" + bytes(15), b"\x02" + bytes(14), b"\x03" + bytes(14)]
)
def test_other_bytes_are_not_a_time(data: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="invalid time of"):
        timestamps.check(data)
