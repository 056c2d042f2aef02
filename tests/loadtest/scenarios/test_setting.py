"""Tests of loadtest.scenarios.setting."""

import pytest

from loadtest.scenarios import setting
from loadtest.swarm import control


def test_typhas_protocol_has_calicos_feeds_alone() -> None:
    with pytest.raises(ValueError, match="Calico's feeds alone"):
        setting.Settings(protocols=(control.Protocol.TYPHA,))
