"""`python -m loadtest.crash_course.apiserver ADDRESS PORT`: a simulated API server with Calico's types, empty."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import Final

from loadtest.apiserver.resources import Resource
from loadtest.apiserver.settings import SimulatorSettings
from loadtest.apiserver.simulator import Simulator
from loadtest.environment import calico_crds

READY: Final = "ready"


def calico_resources() -> list[Resource]:
    """The custom resources of a cluster with Calico, in the group that its IPAM uses."""
    group, _, version = calico_crds.V1.partition("/")
    return [
        Resource(
            group,
            version,
            kind.plural or f"{kind.name.lower()}s",
            kind.name,
            namespaced=kind.is_namespaced,
            custom=True,
        )
        for kind in calico_crds.KINDS
        if calico_crds.V1 in kind.groups
    ]


async def serve(host: str, port: int) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    simulator = Simulator(SimulatorSettings(host=host, port=port))
    for resource in calico_resources():
        simulator.store.install(resource)
    async with simulator:
        print(READY, flush=True)
        await stopped.wait()


def main(arguments: Sequence[str]) -> None:
    """Address and port, as texts."""
    host, port = arguments
    asyncio.run(serve(host, int(port)))


if __name__ == "__main__":
    main(sys.argv[1:])
