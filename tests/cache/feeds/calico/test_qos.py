"""Quality-of-service annotations: limits, dependencies, defaults, classes."""

import pytest

from cache.feeds.calico import qos

_PREFIX = "qos.projectcalico.org/"


def controls(**annotations: str) -> dict[str, int | str] | None:
    return qos.controls({_PREFIX + name: text for name, text in annotations.items()})


def test_without_annotations_there_are_no_controls() -> None:
    assert qos.controls({"other": "1"}) is None
    assert controls(ingressBandwidth="garbage") is None


def test_the_order_of_the_members() -> None:
    found = controls(dscp="0", egressMaxConnections="3", ingressPacketRate="7", egressBandwidth="1M")
    assert found is not None
    assert list(found.items()) == [
        ("egressBandwidth", 1_000_000),
        ("egressBurst", 4 << 30),
        ("ingressPacketRate", 7),
        ("ingressPacketBurst", 5),
        ("egressMaxConnections", 3),
        ("dscp", 0),
    ]


def test_calicos_annotation_takes_precedence_even_if_invalid() -> None:
    kubernetes = {"kubernetes.io/ingress-bandwidth": "2M"}
    assert qos.controls(kubernetes) == {"ingressBandwidth": 2_000_000, "ingressBurst": 4 << 30}
    assert qos.controls({**kubernetes, _PREFIX + "ingressBandwidth": "x"}) is None


@pytest.mark.parametrize(("text", "expected"), [("0", 1000), ("-1", 1000), ("1", 1000), ("5P", 10**15), ("2k", 2000)])
def test_bandwidth_is_clamped(text: str, expected: int) -> None:
    found = controls(ingressBandwidth=text)
    assert found is not None
    assert found["ingressBandwidth"] == expected


@pytest.mark.parametrize(
    ("annotations", "present"),
    [
        ({"ingressBurst": "1M"}, set()),
        ({"ingressPeakrate": "2M"}, set()),
        ({"ingressBandwidth": "2M", "ingressPeakrate": "2M"}, {"ingressBandwidth", "ingressBurst"}),
        (
            {"ingressBandwidth": "1M", "ingressPeakrate": "2M", "ingressMinburst": "2k"},
            {"ingressBandwidth", "ingressBurst", "ingressPeakrate", "ingressMinburst"},
        ),
        ({"ingressBandwidth": "1M", "ingressMinburst": "2k"}, {"ingressBandwidth", "ingressBurst"}),
        ({"egressPacketBurst": "9"}, set()),
    ],
)
def test_values_that_depend_on_another(annotations: dict[str, str], present: set[str]) -> None:
    assert set(controls(**annotations) or {}) == present


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("63", 63),
        ("007", 7),
        ("64", None),
        ("999", None),
        ("-1", None),
        ("", None),
        ("ef", "EF"),
        ("Af43", "AF43"),
        ("AF44", None),
        ("CS6", "CS6"),
        ("CS7", None),
        (" ef ", " ef "),
    ],
)
def test_dscp(text: str, expected: int | str | None) -> None:
    assert qos.dscp({qos.DSCP_ANNOTATION: text}) == expected
