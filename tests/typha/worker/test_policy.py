"""A worker's limits and times, as the settings ask for them."""

import msgspec
import pytest

from typha import settings
from typha.ipc import messages
from typha.worker import policy, tls_transport


@pytest.mark.parametrize(
    ("interval_seconds", "timeout_seconds", "used_seconds"), [(10, 60, 60), (10, 21, 21), (10, 20, 60), (2, 1, 12)]
)
def test_a_pong_timeout_too_close_to_the_ping_interval_becomes_six_intervals(
    interval_seconds: float, timeout_seconds: float, used_seconds: float
) -> None:
    configured = settings.Settings(
        server_ping_interval_seconds=interval_seconds, server_pong_timeout_seconds=timeout_seconds
    )
    assert policy.from_settings(configured).pong_timeout_seconds == used_seconds


def test_the_defaults_of_policy_and_settings_agree() -> None:
    assert policy.from_settings(settings.Settings()) == policy.Policy()


def test_with_tls_the_kernel_holds_less_of_a_snapshot() -> None:
    plain, sealed = (policy.from_settings(settings.Settings(server_key_file=name)) for name in ("", "key.pem"))
    assert policy.Policy().notsent_lowat_bytes < sealed.snapshot_unsent_bytes < plain.snapshot_unsent_bytes
    assert sealed.snapshot_send_bytes == tls_transport.TURN_BYTES < plain.snapshot_send_bytes


def test_a_workers_configuration_is_the_same_after_the_way_through_json() -> None:
    sent = messages.WorkerConfig(
        number=3,
        feeds=("a", "b"),
        incarnation="00" * 16,
        settings=settings.to_dict(settings.Settings(server_handshake_timeout_seconds=3.5)),
    )
    received = msgspec.json.decode(msgspec.json.encode(sent), type=messages.WorkerConfig)
    assert received == sent
    assert settings.from_dict(received.settings).server_handshake_timeout_seconds == 3.5
