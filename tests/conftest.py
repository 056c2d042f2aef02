"""What all tests share: the real control plane, and the rule that a test leaves no task behind."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import hypothesis
import pytest
import pytest_asyncio

from loadtest.environment import control_plane as control_planes

WITHOUT_CONTROL_PLANE = "TYPHA_TESTS_WITHOUT_CONTROL_PLANE"

# No example may be called slow because the machine is busy; what fails can be repeated from the printed blob.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")


def pytest_configure() -> None:
    """Says that the main thread has no event loop: else looptime asks for one in tests that need none, and leaks it."""
    asyncio.set_event_loop(None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need a real control plane if TYPHA_TESTS_WITHOUT_CONTROL_PLANE=1 asks for that.

    They are reported as deselected. Without it they run, and fail with instructions where there is no control plane.
    """
    if os.environ.get(WITHOUT_CONTROL_PLANE) != "1":
        return
    left_out = [item for item in items if item.get_closest_marker("control_plane")]
    items[:] = [item for item in items if not item.get_closest_marker("control_plane")]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control_planes.ControlPlane]:
    """A running kube-apiserver and etcd, one for all tests: each test works in namespaces of its own.

    A test may kill and restart the API server and expire its history, and leaves it running. Mark such tests, and all
    others that use this, with `pytest.mark.control_plane`.
    """
    try:
        binaries = control_planes.find_binaries()
    except control_planes.BinariesMissingError as error:
        pytest.fail(str(error), pytrace=False)
    with control_planes.ControlPlane(tmp_path_factory.mktemp("control-plane"), binaries=binaries) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_task_left_behind(request: pytest.FixtureRequest) -> None:
    """Watches every test that is a coroutine. Asked for first, it looks when all other fixtures are torn down."""
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
