"""The log names each rejected object; after a hundred lines a minute it only counts."""

from structlog import testing

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
