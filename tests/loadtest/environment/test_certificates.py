"""Tests of loadtest.environment.certificates."""

import stat
from pathlib import Path

from loadtest.environment import certificates
from loadtest.swarm import tls


def test_keys_are_private_and_certificates_belong_to_one_authority(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, host="127.0.0.1")
    assert made.environment["TYPHA_CLIENTCN"] == certificates.CLIENT_NAME
    assert made.environment["TYPHA_CAFILE"] == made.agents.authority
    for key in (made.agents.key, made.environment["TYPHA_SERVERKEYFILE"]):
        assert stat.S_IMODE(Path(key).stat().st_mode) == 0o600
    tls.context_of(made.agents)
