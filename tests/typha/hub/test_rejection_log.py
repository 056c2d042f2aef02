"""The log names each rejected object; after a hundred lines a minute it only counts."""

from structlog import testing

from cache import objects, resources
from cache.feeds import feed
from typha.hub import rejection_log


def refusal(number: int, *, is_carried: bool = False) -> feed.Rejection:
    """The rejection of one object."""
    return feed.Rejection("felix", f"/core/v1/pods/default/p{number}", "bad-ip", "not an IP", is_carried)


def test_objects_are_named_up_to_a_limit_and_then_counted() -> None:
    now = 5.0
    log = rejection_log.RejectionLog(lambda: now)
    with testing.capture_logs() as lines:
        for number in range(1000):
            log.write(refusal(number))
    assert [line["key"] for line in lines[:-1]] == [
        refusal(number).key for number in range(rejection_log.LINES_PER_MINUTE)
    ]
    assert lines[0]["reason"] == "bad-ip"
    assert lines[-1]["seconds"] == 60
    assert "counted" in lines[-1]["event"]

    with testing.capture_logs() as lines:
        log.write(refusal(1, is_carried=True))
        log.write(refusal(2))
        now += 60.0
        log.write(refusal(3))
    assert [line["key"] for line in lines] == [refusal(1).key, refusal(3).key]
    assert "is carried" in lines[0]["event"]


def test_objects_that_no_feed_sees_have_lines_of_their_own() -> None:
    log = rejection_log.RejectionLog(lambda: 5.0)
    pods = resources.ResourceType.parse("v1/pods")
    with testing.capture_logs() as lines:
        for number in range(1000):
            log.write_skipped(objects.SkippedObject(pods, "a", f"p{number}", "undecodable", "NaN"))
        log.write(refusal(1))
    assert len(lines) == rejection_log.LINES_PER_MINUTE + 2
    assert (lines[1]["type"], lines[1]["namespace"], lines[1]["name"]) == ("core/v1/pods", "a", "p1")
    assert lines[-2]["metric"] == "typha_objects_skipped"
    assert lines[-1]["key"] == refusal(1).key
