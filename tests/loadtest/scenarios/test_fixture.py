"""Tests of loadtest.scenarios.fixture."""

import pytest

from loadtest.scenarios import fixture
from loadtest.swarm import control


def test_typhas_protocol_has_calicos_feeds_alone() -> None:
    with pytest.raises(ValueError, match="Calico's feeds alone"):
        fixture.Settings(protocols=(control.Protocol.TYPHA,))
