"""What all tests share: the programs in Go, the real control plane, and that a test leaves no task or process."""

import asyncio
import gc
import os
import pathlib
import shutil
import subprocess
import weakref
from asyncio import base_subprocess
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import pytest_asyncio

from loadtest.crash_course import requirements
from loadtest.environment import control_plane as control_planes
from tests.harness.repository import ROOT

WITHOUT_CONTROL_PLANE: Final = "TYPHA_TESTS_WITHOUT_CONTROL_PLANE"
BUILD_TIMEOUT_SECONDS: Final = 3600.0
"""The control plane takes some 6 minutes of two CPUs."""

PROGRAMS: Final = {
    "control_plane": ("control-plane",),
    "go": ("gobpeer", "clientgo", "yamlref", "cnitool", "../clients/go/cmd/typha-follow"),
    "helm": ("helm",),
    "image": ("image",),
}
"""The folders below tools/ with what tests with this marker need."""

CAN_BUILD_IMAGE: Final = os.geteuid() == 0 and all(map(shutil.which, ("buildah", "mmdebstrap", "umoci")))
"""Without a container engine, as tools/image/build.sh does it."""

CAN_MAKE_NAMESPACES: Final = not requirements.missing()
"""For tests whose nodes and pods are network namespaces."""

_built: Final[dict[str, "subprocess.CompletedProcess[str]"]] = {}
_started: Final[weakref.WeakSet[base_subprocess.BaseSubprocessTransport]] = weakref.WeakSet()
"""The processes that asyncio has started (uvloop has a class of its own) and that nobody has forgotten yet."""

# No example may be called slow because the machine is busy; what fails can be repeated from the printed blob.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")


def pytest_configure() -> None:
    """Declare that the main thread has no event loop: otherwise looptime asks for one in every test, and leaks it."""
    asyncio.set_event_loop(None)
    # The path of a Unix socket has 107 characters at most, and the TMPDIR of a machine of CI may be long.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")
    start = base_subprocess.BaseSubprocessTransport.__init__

    def start_and_note(self: base_subprocess.BaseSubprocessTransport, *args: Any, **options: Any) -> None:
        _started.add(self)
        start(self, *args, **options)

    pytest.MonkeyPatch().setattr(base_subprocess.BaseSubprocessTransport, "__init__", start_and_note)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a control plane if TYPHA_TESTS_WITHOUT_CONTROL_PLANE=1, and put the slow ones first.

    Two workers of pytest-xdist end at the same time if the last tests are short. All tests of the shared control plane
    run on one worker, so that it is started once.
    """
    if os.environ.get(WITHOUT_CONTROL_PLANE) == "1":
        left_out = [item for item in items if item.get_closest_marker("control_plane")]
        items[:] = [item for item in items if not item.get_closest_marker("control_plane")]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        for marker in ("control_plane", "image"):
            if item.get_closest_marker(marker) and not item.get_closest_marker("xdist_group"):
                item.add_marker(pytest.mark.xdist_group(marker))
        if item.get_closest_marker("image"):
            reason = "needs root, buildah, mmdebstrap and umoci: make packages"
            item.add_marker(pytest.mark.skipif(not CAN_BUILD_IMAGE, reason=reason))
        if item.get_closest_marker("namespaces"):
            reason = requirements.missing()
            item.add_marker(pytest.mark.skipif(not CAN_MAKE_NAMESPACES, reason=reason))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Put the groups of tests in force, and take the tests, which stay, out of the search for garbage."""
    if session.config.getoption("loadgroup", False):
        _put_groups_into_ids(session.items)
    gc.collect()
    gc.freeze()  # a search takes 0.3 s of CPU otherwise


def _put_groups_into_ids(items: list[pytest.Item]) -> None:
    """Name the group behind `@`, as the scheduler of pytest-xdist expects it.

    pytest-xdist 3.8 writes to an attribute that pytest 9.2 no longer has: without this, no test is in a group.
    """
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if group is not None and not item.nodeid.endswith(f"@{group.args[0]}"):
            item._id = item.id.parse(f"{item.nodeid}@{group.args[0]}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Build the programs that a test needs, before its timeout begins."""
    for folder in _needed_programs(item):
        if folder not in _built:
            _built[folder] = _build(folder, item.config)
    return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test if a program that it needs could not be built."""
    for folder in _needed_programs(item):
        if _built[folder].returncode != 0:
            pytest.fail(f"tools/{folder}/build.sh failed; its messages stand above, where it ran", pytrace=False)


def _needed_programs(item: pytest.Item) -> list[str]:
    if item.get_closest_marker("image") and not CAN_BUILD_IMAGE:
        return []
    return [folder for marker, folders in PROGRAMS.items() if item.get_closest_marker(marker) for folder in folders]


def _build(folder: str, config: pytest.Config) -> "subprocess.CompletedProcess[str]":
    """Run the build script of a folder below tools/, with its progress on the terminal. It prints a path."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        return subprocess.run(
            [ROOT / "tools" / folder / "build.sh"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT_SECONDS,
        )


@pytest.fixture(scope="session")
def gobpeer() -> str:
    """The path of the peer that is written in Go. Mark tests that use it with `pytest.mark.go`."""
    return _built["gobpeer"].stdout.strip()


@pytest.fixture(scope="session")
def image() -> pathlib.Path:
    """The folder with the image, as an OCI layout and unpacked. Mark tests that use it with `pytest.mark.image`."""
    return pathlib.Path(_built["image"].stdout.strip())


@pytest.fixture(scope="session")
def clientgo() -> str:
    """The path of the program on client-go (tools/clientgo). Mark tests that use it with `pytest.mark.go`."""
    return _built["clientgo"].stdout.strip()


@pytest.fixture(scope="session")
def cnitool() -> str:
    """The path of CNI's own cnitool (tools/cnitool). Mark tests that use it with `pytest.mark.go`."""
    return _built["cnitool"].stdout.strip()


@pytest.fixture(scope="session")
def typha_follow() -> str:
    """The path of the example of our client in Go. Mark tests that use it with `pytest.mark.go`."""
    return _built["../clients/go/cmd/typha-follow"].stdout.strip()


@pytest.fixture(scope="session")
def yamlref() -> str:
    """The path of the program that reads YAML as Kubernetes' tools. Mark tests that use it with `pytest.mark.go`."""
    return _built["yamlref"].stdout.strip()


@pytest.fixture(scope="session")
def helm_tools() -> Path:
    """The folder of helm, kubeconform and definitions of resources. Mark tests that use it with `pytest.mark.helm`."""
    return Path(_built["helm"].stdout.strip())


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control_planes.ControlPlane]:
    """A running kube-apiserver and etcd, shared by all tests: each test works in namespaces of its own.

    A test may kill and restart the API server and expire its history, and leaves it running. Mark such tests, and all
    others that use this, with `pytest.mark.control_plane`.
    """
    with control_planes.ControlPlane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_process_left_behind() -> Iterator[None]:
    """Fail a test whose loop closed before it knew that a process had ended.

    Without this, another test would fail: the one that runs when the transport is collected.
    """
    _started.clear()
    yield
    left = [one for one in _started if one.get_returncode() is None and not one.is_closing()]
    if left:
        pytest.fail(f"the test left processes behind: {left}", pytrace=False)


@pytest.fixture(autouse=True)
def _no_task_left_behind(request: pytest.FixtureRequest, _no_process_left_behind: None) -> None:
    """Watch every test that is a coroutine. It is set up first, so it looks after all other fixtures are torn down."""
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_watch_tasks")


@pytest.fixture
async def _watch_tasks() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # a task that was cancelled at the very end may take one turn to be done
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        names = ", ".join(sorted(task.get_name() for task in left))
        pytest.fail(f"the test left tasks behind: {names}", pytrace=False)


@pytest.fixture
def free_port() -> int:
    """A free port on loopback that no outgoing connection takes meanwhile."""
    return control_planes.free_port()
