"""The command: exit codes and output."""

import json
import socket
import sys

import pytest

from clients.conformance import __main__ as command
from tests.harness.repository import ROOT

CLIENT = f"{sys.executable} -m clients.conformance.python_client {{address}} {{feed}}"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_client_that_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--client", CLIENT, "--only", "O4", "--patience", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_a_client_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    client = f"{sys.executable} -m tests.harness.faulty_client V2 {{address}} {{feed}}"
    assert command.main(["--client", client, "--only", "V2", "--patience", "3"]) == 1
    assert "fail  V2 " in capsys.readouterr().out


def test_nothing_to_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--client", CLIENT, "--only", "Z9"]) == 2
    assert command.main(["--server", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("cannot test") == 2


def test_what_is_wrong_with_tls_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--server", "127.0.0.1:1", "--ca-file", "/no/ca.pem"]) == 2
    assert "/no/ca.pem" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a port with TLS, to a client that speaks none
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert command.main(["--server", address, "--patience", "0.2"]) == 2
    assert "perhaps because its port has TLS" in capsys.readouterr().err
