"""The API server's load does not depend on the number of agents."""

import dataclasses
from typing import Final

from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture

FEW: Final = 10
_READS: Final = ("GET", "LIST", "WATCH")

Rise = dict[tuple[str, ...], float]


def requests(before: measure.Counters, after: measure.Counters, resources: set[str]) -> Rise:
    """How much each counter of requests for these resources (plural names) rose."""
    return _rise("apiserver_request_total", before, after, resources)


def watches(before: measure.Counters, after: measure.Counters, resources: set[str]) -> Rise:
    """How many more watches of these resources are open."""
    return _rise("apiserver_longrunning_requests", before, after, resources)


def _rise(name: str, before: measure.Counters, after: measure.Counters, resources: set[str]) -> Rise:
    labels = ("verb", "group", "resource")
    old = before.by_labels(name, *labels)
    new = after.by_labels(name, *labels)
    return {
        place: value - old.get(place, 0.0)
        for place, value in sorted(new.items())
        if place[0] in _READS and place[2] in resources and value != old.get(place, 0.0)
    }


def check(few: tuple[int, Rise, Rise], many: tuple[int, Rise, Rise]) -> report.Check:
    """The check: the same requests and the same open watches. Each is (agents, rise, open watches)."""
    total = [sum(part[1].values()) for part in (few, many)]
    open_watches = [sum(part[2].values()) for part in (few, many)]
    same = few[1:] == many[1:]
    detail = (
        f"{few[0]} agents: {total[0]:.0f} requests, {open_watches[0]:.0f} open watches; "
        f"{many[0]} agents: {total[1]:.0f} requests, {open_watches[1]:.0f} open watches"
    )
    differing = {" ".join(place) for place in few[1].keys() | many[1].keys() if few[1].get(place) != many[1].get(place)}
    return report.Check(
        "the API server's counters rise the same with few and many agents",
        same,
        detail + (f"; different: {', '.join(sorted(differing))}" if differing else ""),
    )


async def api_load(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """The simulator's own counters with 10 agents and with all."""
    parts = []
    public = min(settings.public_agents, FEW // 2)
    made = report.Report(title="Load of the API server", command="python -m loadtest run")
    for agents in (FEW, settings.agents):
        small = dataclasses.replace(settings, public_agents=public)
        async with fixture.open_scene(small, screen, agents=agents) as scene:
            await scene.start_churn()
            await scene.running.sleep(settings.seconds)
            counters = measure.Counters(await scene.simulator.metrics())
            resources = {spec.type.resource for spec in scene.running.specs}
            none = measure.Counters("")
            parts.append((agents, requests(none, counters, resources), watches(none, counters, resources)))
            made = await scene.finish("Load of the API server", {}, [])
    made.checks.insert(0, check(parts[0], parts[1]))
    made.data["requests"] = [{" ".join(place): value for place, value in part[1].items()} for part in parts]
    return made
