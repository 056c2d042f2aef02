"""The texts and properties of the errors."""

import pytest

from clients import errors


def test_an_error_names_its_server() -> None:
    assert str(errors.ConnectFailed("typha:5473", "timed out")) == "typha:5473: timed out"


@pytest.mark.parametrize(
    ("reason", "is_transient"), [("shutting-down", True), ("unknown-feed", False), ("from-the-future", False)]
)
def test_a_refusal_has_its_reason(reason: str, is_transient: bool) -> None:
    refusal = errors.Refused("typha:5473", reason=reason, text="because", retry_after_seconds=1.0)
    assert str(refusal) == f"typha:5473: {reason}: because"
    assert refusal.is_transient is is_transient
