"""Quality-of-service annotations as the `qosControls` of an endpoint (docs/data-model.md, section 5.1). Pure."""

from collections.abc import Mapping

from cache.feeds.calico.codecs import quantity

DSCP_ANNOTATION = "qos.projectcalico.org/dscp"
_PREFIX = "qos.projectcalico.org/"
_KUBERNETES_BANDWIDTH = "kubernetes.io/{}-bandwidth"
_BURST_DEFAULT = 4 << 30
_PACKET_BURST_DEFAULT = 5
_DSCP_NAMES = frozenset(
    ["DF", "EF"]
    + [f"AF{class_}{drop}" for class_ in range(1, 5) for drop in range(1, 4)]
    + [f"CS{n}" for n in range(7)]
)
_DSCP_MAX = 63

_BANDWIDTH_LIMITS = (1000, 10**15)
_LIMITS = {
    "Burst": (1000, 34359738360),
    "Peakrate": (1010, 1010 * 10**12),
    "Minburst": (1000, 10**8),
    "PacketRate": (1, 10000),
    "PacketBurst": (1, 10000),
    "MaxConnections": (1, (1 << 32) - 1),
}
_ORDER = (
    *(
        f"{direction}{name}"
        for direction in ("ingress", "egress")
        for name in ("Bandwidth", "Burst", "Peakrate", "Minburst")
    ),
    *(f"{direction}{name}" for direction in ("ingress", "egress") for name in ("PacketRate", "PacketBurst")),
    *(f"{direction}MaxConnections" for direction in ("ingress", "egress")),
)


def dscp(annotations: Mapping[str, str]) -> int | str | None:
    """Return the DSCP value: a number up to 63, the upper-case name of a class, or None."""
    text = annotations.get(DSCP_ANNOTATION)
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        significant = text.lstrip("0") or "0"
        return int(significant) if len(significant) <= 2 and int(significant) <= _DSCP_MAX else None
    if not text.isascii() or text.strip().upper() not in _DSCP_NAMES:
        return None
    return text.upper() if text.upper() in _DSCP_NAMES else text  # with surrounding spaces it is sent unchanged


def controls(annotations: Mapping[str, str]) -> dict[str, int | str] | None:
    """Return the endpoint's `qosControls`, or None if there are none. Invalid annotations are ignored."""
    if not any(name.startswith((_PREFIX, "kubernetes.io/")) for name in annotations):
        return None
    values = {**_direction(annotations, "ingress"), **_direction(annotations, "egress")}
    ordered: dict[str, int | str] = {name: values[name] for name in _ORDER if values.get(name)}
    class_ = dscp(annotations)
    if class_ is not None:
        ordered["dscp"] = class_
    return ordered or None


def _direction(annotations: Mapping[str, str], direction: str) -> dict[str, int]:
    """Return all values of one direction, 0 for none."""
    found = {name: _clamped(annotations.get(f"{_PREFIX}{direction}{name}"), limits) for name, limits in _LIMITS.items()}
    bandwidth_text = annotations.get(f"{_PREFIX}{direction}Bandwidth")
    if bandwidth_text is None:
        bandwidth_text = annotations.get(_KUBERNETES_BANDWIDTH.format(direction))
    bandwidth = _clamped(bandwidth_text, _BANDWIDTH_LIMITS)
    burst = (found["Burst"] or _BURST_DEFAULT) if bandwidth else 0
    peakrate = found["Peakrate"] if 0 < bandwidth < found["Peakrate"] else 0
    packet_burst = (found["PacketBurst"] or _PACKET_BURST_DEFAULT) if found["PacketRate"] else 0
    return {
        f"{direction}Bandwidth": bandwidth,
        f"{direction}Burst": burst,
        f"{direction}Peakrate": peakrate,
        f"{direction}Minburst": found["Minburst"] if peakrate else 0,
        f"{direction}PacketRate": found["PacketRate"],
        f"{direction}PacketBurst": packet_burst,
        f"{direction}MaxConnections": found["MaxConnections"],
    }


def _clamped(text: str | None, limits: tuple[int, int]) -> int:
    value = None if text is None else quantity.whole_value(text)
    return 0 if value is None else min(max(value, limits[0]), limits[1])
