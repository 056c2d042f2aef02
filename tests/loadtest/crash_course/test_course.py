"""The narrator: what fails is neither left out of the table nor passed."""

from pathlib import Path

import pytest

from loadtest.crash_course import chapters, report, topology
from loadtest.crash_course.cluster import Cluster
from loadtest.crash_course.course import Course
from loadtest.crash_course.namespaces import Namespaces


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """A course of which nothing runs."""
    return Course(Cluster(Namespaces("cn-none"), tmp_path, nodes=2))


def test_an_end_in_the_middle_fails_the_course(course: Course) -> None:
    course.chapter("1. One", "")
    course.act("Good", "true", lambda: "yes", shows=lambda text: text == "yes", checked="it is so")
    assert report.summarize(course, 1.0)
    course.fail(TimeoutError("no answer"))
    assert not report.summarize(course, 1.0)
    assert course.steps[-1].output == "TimeoutError: no answer"


def test_a_failed_step_fails_the_course(course: Course) -> None:
    course.chapter("1. One", "")
    course.step("No such namespace", topology.ROUTER, "true", shows="x", checked="it is so", wait_seconds=0)
    assert not report.summarize(course, 1.0)


def test_a_route_is_right_when_the_kernel_uses_it() -> None:
    table = "10.0.0.0/26 via 10.0.0.1 dev vxlan.calico proto 80 onlink"
    agree = [
        chapters.agree("vxlan.calico", "vxlan.calico", f"10.0.0.1 {way} \n    cache \n{table}")
        for way in ("via 172.30.1.1 dev eth0", "via 10.0.0.1 dev vxlan.calico")
    ]
    assert agree == [False, True]
