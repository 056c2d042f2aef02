"""How many connections fit beside the service's own open files."""

import resource

import pytest

from typha import open_files, settings

CONFIGURED = settings.Settings()


@pytest.mark.parametrize("with_hub", [False, True])
@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 1 << 20])
def test_connections_leave_room_for_the_service(limit: int, with_hub: bool) -> None:
    most = open_files.connections_max(CONFIGURED, feeds=4, with_hub=with_hub, limit=limit)
    assert limit // 2 <= most < limit
    assert limit - most == min(open_files.own(CONFIGURED, feeds=4, with_hub=with_hub), limit // 2)


def test_a_larger_log_and_more_feeds_need_more() -> None:
    larger = settings.Settings(log_budget_bytes=2 * CONFIGURED.log_budget_bytes)
    usual = open_files.own(CONFIGURED, feeds=1, with_hub=False)
    assert open_files.own(larger, feeds=1, with_hub=False) == usual + 16 * 3
    assert open_files.own(CONFIGURED, feeds=2, with_hub=False) > usual
    assert open_files.own(CONFIGURED, feeds=1, with_hub=True) > usual + 16 * 4


def test_the_limit_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert open_files.raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_that_may_not_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (500, 1000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert open_files.raise_limit() == 500
