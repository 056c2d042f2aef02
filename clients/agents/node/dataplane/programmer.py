"""Drives the data plane: takes updates, programs the kernel, verifies and repairs it."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

from clients.agents.node import desired
from clients.agents.node.dataplane import compiler, conntrack, links, nft, routing, table

LOG = logging.getLogger("typha.node.dataplane")

PROGRAM_ATTEMPTS = 3
"""The difference to what the kernel is thought to have, the difference to what it has, and the table as a whole."""

ROUTING_SECTIONS = ("endpoints", "routes", "vteps")
"""Sections of an update that change routes, beside the settings."""


@dataclasses.dataclass(slots=True)
class Counters:
    """What the data plane has done since it started."""

    transactions: int = 0
    failed_transactions: int = 0
    repairs: int = 0
    """Transactions because the table was not as it was left."""
    listings: int = 0
    """How often the whole table was read."""
    route_changes: int = 0
    forgotten_addresses: int = 0
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    """By what failed: `nft`, `routes`, `conntrack`, `sysctl`."""

    def failed(self, part: str) -> None:
        """Counts a failure."""
        self.failures[part] = self.failures.get(part, 0) + 1


class Programmer:
    """Makes the kernel equal to the state that all updates add up to.

    Start it before the first update: until then workloads are cut off, unless the kernel has the table of an earlier
    run, which stays as it is until the first update is complete.
    """

    def __init__(
        self,
        node: str,
        *,
        nft: nft.Nft,
        links: links.Links,
        conntrack: conntrack.Conntrack,
        prepare_interface: Callable[[str], str | None] = links.prepare_interface,
    ) -> None:
        self._node = node
        self._nft = nft
        self._links = links
        self._conntrack = conntrack
        self._prepare_interface = prepare_interface
        self._compiler = compiler.Compiler()
        self._generation: int | None = None
        """Of the last time that the table was as it must be; None: it must be read."""
        self._kernel_known = False
        """Whether the table knows what the kernel has."""
        self.was_programmed = False
        """Whether the kernel had the program of an earlier run at the start."""
        self._abandoned: set[str] = set()
        """Addresses that workloads have given up."""
        self.state = desired.State()
        """What all updates add up to, without the sets: they are large, and the table has them."""
        self.counters = Counters()
        self.pending: dict[str, str] = {}
        """What could not be set, with the reason. It is tried again."""
        self._routes_differ = True

    @property
    def refused_endpoints(self) -> list[str]:
        """Endpoints that are cut off because of their interfaces' names."""
        return self._compiler.refused()

    async def start(self) -> None:
        """Closes the node for workloads unless it is programmed already.

        Raises:
            NftFailed, OSError: the kernel cannot be programmed.
        """
        self._generation = self._nft.generation()
        try:
            found = await self._read()
        except nft.NftFailed as error:
            # Something is there that this release of nft cannot list. The first program replaces it.
            self._failed("nft", str(error))
            self.was_programmed = True
            return
        self._compiler.table.compare(found)
        self._kernel_known = True
        self.was_programmed = found is not None
        if found is None:
            await self._commit()

    def update(self, update: desired.Update) -> None:
        """Takes an update; `program` brings it into the kernel."""
        if update.settings is not None or any(getattr(update, section) for section in ROUTING_SECTIONS):
            self._routes_differ = True
        for key in update.endpoints.removed | update.endpoints.set.keys():
            before, now = self.state.endpoints.get(key), update.endpoints.set.get(key)
            if before is not None:
                self._abandoned |= _ipv4(before) - (set() if now is None else _ipv4(now))
        self._compiler.apply(update)
        self.state.apply(dataclasses.replace(update, sets=desired.Changes(), members={}))

    def link_changed(self, interface: str | None) -> bool:
        """Takes that an interface came, changed or went; None: any of them. Returns whether routes depend on it."""
        concerned = interface is None or interface == routing.VXLAN_DEVICE or self._compiler.has_interface(interface)
        self._routes_differ |= concerned
        return concerned

    async def program(self) -> bool:
        """Brings all updates into the kernel. Returns whether all of it is there now.

        New rules come before new routes, and old connections end only when the new rules hold.
        """
        complete = await self._program_rules()
        if complete and self._abandoned:
            abandoned, self._abandoned = self._abandoned, set()
            failures = await self._conntrack.forget(abandoned)
            self.counters.forgotten_addresses += len(abandoned)
            for failure in failures[:1]:
                self._failed("conntrack", failure)
        if complete and self._routes_differ:
            await self.program_routes()
        return complete and not self._routes_differ

    async def verify_rules(self) -> None:
        """Repairs the table if any program has changed rules since it was last right."""
        if self._compiler.table or self._abandoned:
            await self.program()
            return
        try:
            generation = self._nft.generation()
            if generation == self._generation:
                return
            if not self._nft.notified() and self._generation is not None:
                self._generation = generation
                return
            self._compiler.table.compare(await self._read())
            if not self._compiler.table:
                self._generation = generation
                return
        except (nft.NftFailed, OSError) as error:
            self._failed("nft", str(error))
            return
        LOG.warning("The table is not as it was left. Repairing it.")
        self.counters.repairs += 1
        await self._program_rules()

    async def guard_rules(self) -> None:
        """Leaves the program of an earlier run as it is, which may be newer than the updates, unless others change it.

        Then an old program is better than what they leave, which may be none.
        """
        try:
            generation = self._nft.generation()
            if generation == self._generation:
                return
            self._generation = generation
            if not self._nft.notified():
                return
        except OSError as error:
            self._failed("nft", str(error))
            return
        LOG.warning("Another program has changed the table of an earlier run. Replacing it.")
        self.counters.repairs += 1
        self._kernel_known = False
        await self._program_rules()

    async def program_routes(self) -> None:
        """Reads and repairs routes, tunnel and neighbours."""
        network = routing.network(self.state, node=self._node)
        before = self._links.changes
        try:
            self.pending = await self._links.make(network)
            self._routes_differ = False
        except OSError as error:
            self._failed("routes", str(error))
            self._routes_differ = True
        self.counters.route_changes += self._links.changes - before
        for destination, path in network.routes.items():
            if path.kind is routing.PathKind.LINK and destination not in self.pending:
                problem = self._prepare_interface(path.to)
                if problem is not None:
                    self.pending[path.to] = problem

    async def _program_rules(self) -> bool:
        """Makes the table right. After a failure nothing is assumed about the kernel; the last attempt starts over."""
        wanted = self._compiler.table
        for attempt in range(PROGRAM_ATTEMPTS):
            try:
                if attempt == PROGRAM_ATTEMPTS - 1:
                    # Also if the table cannot even be read.
                    wanted.start_over()
                elif not self._kernel_known:
                    wanted.compare(await self._read())
                    self._kernel_known = True
                if wanted:
                    await self._commit()
            except (nft.NftFailed, OSError) as error:
                self._failed("nft", str(error))
            else:
                return True
        return False

    async def _commit(self) -> None:
        started = time.monotonic()
        before = self._nft.generation()
        self._generation, self._kernel_known = None, False
        try:
            await self._nft.run(self._compiler.table.transaction())
        except nft.NftFailed:
            self.counters.failed_transactions += 1
            raise
        self._compiler.table.committed()
        self._kernel_known = True
        self.counters.transactions += 1
        # The notifications so far are about this transaction, if it was the only one.
        self._nft.notified()
        if self._nft.generation() == before + 1:
            self._generation = before + 1
        LOG.debug("Programmed rules in %.3f s: %r", time.monotonic() - started, self._compiler.table)

    async def _read(self) -> table.Found | None:
        self.counters.listings += 1
        return await self._nft.read()

    def _failed(self, part: str, reason: str) -> None:
        self.counters.failed(part)
        LOG.error("%s failed: %s", part, reason)

    def numbers(self) -> Mapping[str, int]:
        """Sizes of what is programmed."""
        table = self._compiler.table
        return {
            "endpoints": len(self.state.endpoints),
            "policies": len(self.state.policies),
            "chains": len(table.chains),
            "rules": sum(len(chain.rules) for chain in table.chains.values()),
            "sets": len(table.sets),
            "elements": sum(map(len, table.elements.values())),
            "routes": len(self.state.routes),
        }


def _ipv4(endpoint: desired.Endpoint) -> set[str]:
    return {net.removesuffix("/32") for net in endpoint.nets if ":" not in net}
