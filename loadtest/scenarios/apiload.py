"""The API server's load does not depend on the number of agents."""

from typing import Final, NamedTuple

from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture

FEW: Final = 10
_READS: Final = ("GET", "LIST", "WATCH")

Rise = dict[tuple[str, ...], float]
"""(verb, group, resource) -> how much a counter rose."""


class Load(NamedTuple):
    """What a service with this many agents asked of the API server."""

    agents: int
    requests: Rise
    watches: Rise

    def data(self) -> tuple[dict[str, float], dict[str, float]]:
        """Requests and watches for the JSON report."""
        requests, watches = ({" ".join(place): value for place, value in rise.items()} for rise in self[1:])
        return requests, watches

    def __str__(self) -> str:
        requests, watches = sum(self.requests.values()), sum(self.watches.values())
        return f"{self.agents} agents: {requests:.0f} requests, {watches:.0f} open watches"


def requests(before: measure.Metrics, after: measure.Metrics, resources: set[str]) -> Rise:
    """New requests for these resources (plural names)."""
    return _rise("apiserver_request_total", before, after, resources)


def watches(before: measure.Metrics, after: measure.Metrics, resources: set[str]) -> Rise:
    """New open watches of these resources."""
    return _rise("apiserver_longrunning_requests", before, after, resources)


def _rise(name: str, before: measure.Metrics, after: measure.Metrics, resources: set[str]) -> Rise:
    labels = ("verb", "group", "resource")
    old = before.by_labels(name, *labels)
    return {
        place: value - old.get(place, 0.0)
        for place, value in sorted(after.by_labels(name, *labels).items())
        if place[0] in _READS and place[2] in resources and value != old.get(place, 0.0)
    }


def check(few: Load, many: Load) -> report.Check:
    """The requests and the open watches are the same."""
    places = few.requests.keys() | many.requests.keys()
    differing = sorted(" ".join(place) for place in places if few.requests.get(place) != many.requests.get(place))
    return report.Check(
        "the API server's counters rise the same with few and many agents",
        few[1:] == many[1:],
        f"{few}; {many}" + (f"; different: {', '.join(differing)}" if differing else ""),
    )


async def api_load(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """The simulator's own counters with 10 agents and with all."""
    loads = []
    none = measure.Metrics("")
    public = min(settings.public_agents, FEW // 2)
    for agents in (FEW, settings.agents):
        async with fixture.open_scene(settings, screen, agents=agents, public_agents=public) as scene:
            await scene.start_churn()
            await scene.testbed.sleep(settings.seconds)
            counters = await scene.simulator.counters()
            names = {spec.type.resource for spec in scene.testbed.specs}
            loads.append(Load(agents, requests(none, counters, names), watches(none, counters, names)))
            made = await scene.finish("Load of the API server", {}, [])
    made.checks.insert(0, check(*loads))
    made.data["requests"] = [load.data()[0] for load in loads]
    return made
