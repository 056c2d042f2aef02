"""The course as a user starts it: all steps pass, two run side by side, and nothing is left whatever ends it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.crash_course import namespaces
from tests.harness.repository import ROOT

pytestmark = [pytest.mark.namespaces, pytest.mark.slow, pytest.mark.timeout(600)]

Course = subprocess.Popen[str]


@pytest.fixture
def courses() -> Iterator[list[Course]]:
    """Courses that are ended if a test fails."""
    started: list[Course] = []
    yield started
    for course in started:
        course.terminate()
        course.communicate()


def start(courses: list[Course], *arguments: str) -> Course:
    course = subprocess.Popen(
        # A test in the background of a shell would inherit that SIGINT is ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "loadtest.crash_course", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    courses.append(course)
    return course


def left(course: Course) -> list[str]:
    """The namespaces of a course."""
    return [path.name for path in namespaces.FOLDER.glob(f"cn-{course.pid}-*")]


def folders(course: Course) -> list[Path]:
    """The folders of a course."""
    return list(Path(tempfile.gettempdir()).glob(f"crash-course-{course.pid}-*"))


def processes(course: Course) -> dict[int, str]:
    """The commands of the processes in the namespaces of a course, by process identifier."""
    found = {}
    for name in left(course):
        done = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True)
        for number in map(int, done.stdout.split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[number] = Path("/proc", str(number), "cmdline").read_text()
    return found


def alive(commands: dict[int, str]) -> list[str]:
    """Those that still run. One that has ended, and that nobody has waited for, has no command."""
    now = []
    for number, command in commands.items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if command and Path("/proc", str(number), "cmdline").read_text() == command:
                now.append(command)
    return now


def read_until(course: Course, text: str) -> None:
    assert course.stdout is not None
    for line in course.stdout:
        if text in line:
            return
    pytest.fail(f"the course has ended before {text}")


def test_all_steps_pass_in_two_courses_at_once(courses: list[Course], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    both = [start(courses, "--report", str(report)), start(courses, "--nodes", "3")]
    for course in both:
        output, _ = course.communicate()
        assert course.returncode == 0, output
        assert "all steps passed" in output
        assert left(course) == []
    text = report.read_text()
    assert len(re.findall(r"<p class='ok'>", text)) > 30
    assert "class='failed'>failed" not in text
    assert "<svg" in text


@pytest.mark.control_plane
def test_all_steps_pass_with_a_real_api_server(courses: list[Course]) -> None:
    course = start(courses, "--control-plane", "real")
    output, _ = course.communicate()
    assert course.returncode == 0, output
    assert left(course) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_course_that_is_interrupted_leaves_nothing(courses: list[Course], number: signal.Signals) -> None:
    course = start(courses)
    read_until(course, "2. Pods")
    assert left(course) != []
    inside = processes(course)
    assert len(inside) > 4
    course.send_signal(number)
    course.communicate()
    assert course.returncode != 0
    assert [*left(course), *folders(course)] == []
    assert alive(inside) == []


def test_the_next_course_removes_what_a_killed_one_has_left(courses: list[Course]) -> None:
    killed = start(courses)
    read_until(killed, "2. Pods")
    inside = processes(killed)
    killed.kill()
    # Other tests run courses, too. They take what is left of one that has ended, but not before somebody has waited.
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert left(killed) != []
    assert folders(killed) != []
    assert alive(inside) != []
    killed.wait()
    following = start(courses)
    read_until(following, "1. Core")
    assert [*left(killed), *folders(killed)] == []
    assert alive(inside) == []


def test_a_course_that_cannot_go_on_fails_and_has_a_report(courses: list[Course], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    course = start(courses, "--report", str(report))
    read_until(course, "2. Pods")
    [server] = [number for number, command in processes(course).items() if "loadtest.crash_course.apiserver" in command]
    os.kill(server, signal.SIGKILL)
    output, _ = course.communicate()
    assert course.returncode == 1
    assert "The course ends here" in output
    assert "there are failures" in output
    assert "Traceback" not in output
    assert "class='failed'>failed" in report.read_text()
    assert left(course) == []


def test_a_prompt_in_a_running_network(courses: list[Course]) -> None:
    course = start(courses, "--shell", "--skip-chapters")
    commands = [
        "pods",
        "ping frontend ingress-controller",
        "get ippools",
        "explain client frontend 443",
        "nonsense",
        "ping x y",
        "run shop node-9",
        "run shop",
        "run frontend node-1",
        "break agent node-1",
        "break agent node-1",
        "heal agent node-1",
        "heal agent node-1",
        "nodes",
    ]
    output, _ = course.communicate("\n".join([*commands, "exit", ""]))
    assert course.returncode == 0
    _, _, shown = output.partition("Type help")
    assert " 0% packet loss" in shown
    assert "192.168.0.0/16" in shown
    assert "ALLOWED" in shown
    assert "there is no pod 'x'" in shown
    assert "there is no node 'node-9'" in shown
    assert "run POD NODE [LABEL=VALUE ...]" in shown
    assert "already exists" in shown
    assert "the node agent of node-1 is dead already" in shown
    assert "the node agent of node-1 runs" in shown
    assert re.search(r"node-2 +172\.30\.2\.12", shown)
    assert left(course) == []
