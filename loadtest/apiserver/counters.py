"""Counts of requests and open watches, shown with kube-apiserver's metric names."""

from collections import Counter
from collections.abc import Iterable

from loadtest.apiserver.resources import Resource

#: Verb counted for a watch with sendInitialEvents; the metrics show it as WATCH, as kube-apiserver's do.
WATCH_LIST = "WATCHLIST"


class Counters:
    """Plain counts. A request counts when it is answered, a watch when its stream begins."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, Resource | None, int]] = Counter()
        self.open_watches: Counter[tuple[str, Resource]] = Counter()
        self.watches_ended: Counter[str] = Counter()

    def watches_by_resource(self) -> dict[str, int]:
        """Type -> number of open watches."""
        return _sums((str(resource), count) for (_, resource), count in self.open_watches.items() if count)

    def exposition(self) -> str:
        """The metrics in Prometheus' text format."""
        requests = _sums(
            (f'apiserver_request_total{{code="{code}",{_labels(verb, resource)}}}', count)
            for (verb, resource, code), count in self.requests.items()
        )
        watches = _sums(
            (f"apiserver_longrunning_requests{{{_labels(verb, resource)}}}", count)
            for (verb, resource), count in self.open_watches.items()
        )
        lines = [
            "# HELP apiserver_request_total Requests answered.",
            "# TYPE apiserver_request_total counter",
            *(f"{series} {count}" for series, count in requests.items()),
            "# HELP apiserver_longrunning_requests Watches open now.",
            "# TYPE apiserver_longrunning_requests gauge",
            *(f"{series} {count}" for series, count in watches.items()),
        ]
        return "\n".join(lines) + "\n"


def _sums(items: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sums by name, sorted by name."""
    sums: Counter[str] = Counter()
    for name, count in items:
        sums[name] += count
    return dict(sorted(sums.items()))


def _labels(verb: str, resource: Resource | None) -> str:
    shown = "WATCH" if verb == WATCH_LIST else verb
    group, version, name = (resource.group, resource.version, resource.name) if resource else ("", "", "")
    return f'component="apiserver",group="{group}",resource="{name}",subresource="",verb="{shown}",version="{version}"'
