"""The course as a user starts it: all steps pass, two run side by side, and nothing is left whatever ends it."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.crash_course import namespaces
from tests.harness.repository import ROOT

pytestmark = [pytest.mark.namespaces, pytest.mark.slow, pytest.mark.timeout(400)]

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
        [sys.executable, "-m", "loadtest.crash_course", *arguments],
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_course_that_is_interrupted_leaves_nothing(courses: list[Course], number: signal.Signals) -> None:
    course = start(courses)
    assert course.stdout is not None
    for line in course.stdout:
        if "2. Pods" in line:
            break
    assert left(course) != []
    course.send_signal(number)
    course.communicate()
    assert course.returncode != 0
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
    ]
    output, _ = course.communicate("\n".join([*commands, "exit", ""]))
    assert course.returncode == 0
    assert " 0% packet loss" in output
    assert "192.168.0.0/16" in output
    assert "ALLOWED" in output
    assert "KeyError" in output
    assert left(course) == []
