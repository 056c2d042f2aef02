"""The helper process: what a plugin gets and says, and a helper that cannot be started."""

import asyncio
import contextlib
import errno
import os
import pathlib

import pytest

from cache.kube import access, loader
from tests.harness import kubeconfig_cases


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.mark.slow
async def test_the_last_line_of_a_plugin_is_in_the_message(config: pathlib.Path) -> None:
    plugin = kubeconfig_cases.plugin("echo first >&2; printf 'not \\033[1mlogged in\\n' >&2; exit 3")
    config.write_text(kubeconfig_cases.config(user=plugin))
    with pytest.raises(access.AccessError) as caught:
        await loader.load_access()
    assert str(caught.value) == rf"kubeconfig {config}: exec: sh failed with exit status 3 (not \x1b[1mlogged in)"


@pytest.mark.slow
async def test_a_plugin_has_the_services_environment_and_no_more(
    config: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("FOR_THE_PLUGIN", "v")
    plugin = kubeconfig_cases.plugin(kubeconfig_cases.prints_text("$FOR_THE_PLUGIN-${PYTHONPATH:-none}"))
    config.write_text(kubeconfig_cases.config(user=plugin))
    assert (await loader.load_access()).authorization == "Bearer v-none"


@pytest.mark.slow
async def test_a_process_that_a_plugin_leaves_behind_is_not_waited_for(config: pathlib.Path) -> None:
    # It keeps standard error open, as an agent or a cache does that a plugin starts; here until the test ends it.
    end = config.parent / "end"
    os.mkfifo(end)
    plugin = kubeconfig_cases.plugin(f"cat {end} > /dev/null & " + kubeconfig_cases.prints('{"token": "p"}'))
    config.write_text(kubeconfig_cases.config(user=plugin))
    try:
        assert (await loader.load_access(timeout_seconds=20.0)).authorization == "Bearer p"
    finally:
        with contextlib.suppress(OSError):
            os.close(os.open(end, os.O_WRONLY | os.O_NONBLOCK))  # its reader gets the end


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "Resource temporarily unavailable"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (MemoryError(), "no memory"),
    ],
)
async def test_a_helper_that_cannot_be_started(
    config: pathlib.Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, problem: str
) -> None:
    async def lacking(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(asyncio, "create_subprocess_exec", lacking)
    with pytest.raises(access.AccessError, match=rf"cannot be started: {problem}$"):
        await loader.load_access()
