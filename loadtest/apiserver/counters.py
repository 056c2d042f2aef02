"""Requests and open watches, counted and shown with kube-apiserver's metric names."""

import collections

from loadtest.apiserver.resources import Resource

#: Verb counted for a watch with sendInitialEvents; in the metrics it is a WATCH, as in kube-apiserver's.
WATCH_LIST = "WATCHLIST"


class Counters:
    """Plain counts; requests are counted when answered or, for watches, when their stream begins."""

    def __init__(self) -> None:
        self.requests: collections.Counter[tuple[str, Resource | None, int]] = collections.Counter()
        self.open_watches: collections.Counter[tuple[str, Resource]] = collections.Counter()
        self.events: collections.Counter[Resource] = collections.Counter()
        self.watches_ended: collections.Counter[str] = collections.Counter()

    def requests_by_verb(self) -> dict[str, int]:
        """`LIST core/v1/pods` and so on: number of requests, whatever their answer."""
        result: collections.Counter[str] = collections.Counter()
        for (verb, resource, _), count in self.requests.items():
            result[f"{verb} {resource}" if resource else verb] += count
        return dict(sorted(result.items()))

    def answers_by_code(self) -> dict[str, int]:
        """Number of answers by HTTP status."""
        result: collections.Counter[str] = collections.Counter()
        for (_, _, code), count in self.requests.items():
            result[str(code)] += count
        return dict(sorted(result.items()))

    def watches_by_resource(self) -> dict[str, int]:
        """Number of open watches by type."""
        result: collections.Counter[str] = collections.Counter()
        for (_, resource), count in self.open_watches.items():
            if count:
                result[str(resource)] += count
        return dict(sorted(result.items()))

    def exposition(self) -> str:
        """Text format of Prometheus."""
        totals: collections.Counter[str] = collections.Counter()
        for (verb, resource, code), count in self.requests.items():
            totals[f'apiserver_request_total{{code="{code}",{_labels(verb, resource)}}}'] += count
        running: collections.Counter[str] = collections.Counter()
        for (verb, watched), count in self.open_watches.items():
            running[f"apiserver_longrunning_requests{{{_labels(verb, watched)}}}"] += count
        lines = ["# HELP apiserver_request_total Requests answered.", "# TYPE apiserver_request_total counter"]
        lines += [f"{series} {count}" for series, count in sorted(totals.items())]
        lines += [
            "# HELP apiserver_longrunning_requests Watches open now.",
            "# TYPE apiserver_longrunning_requests gauge",
        ]
        lines += [f"{series} {count}" for series, count in sorted(running.items())]
        return "\n".join(lines) + "\n"


def _labels(verb: str, resource: Resource | None) -> str:
    shown = "WATCH" if verb == WATCH_LIST else verb
    group, version, name = (resource.group, resource.version, resource.name) if resource else ("", "", "")
    return f'component="apiserver",group="{group}",resource="{name}",subresource="",verb="{shown}",version="{version}"'
