"""The API server that IPAM needs, as a dictionary, and what must hold for its objects at any time."""

import copy
from typing import Any, TypeVar

from clients.agents.cni import ipam, records
from clients.agents.cni.records import Block, JsonObject

Result = TypeVar("Result")


class Store:
    """Objects by resource and name, with compare-and-set."""

    def __init__(self, *, created_at: str = "2026-01-01T00:00:00Z") -> None:
        self.objects: dict[str, dict[str, JsonObject]] = {}
        self.version = 0
        self._created_at = created_at

    def add_pool(self, cidr: str, *, name: str = "pool", **spec: Any) -> None:
        """An IPPool."""
        self.put("ippools", {"metadata": {"name": name}, "spec": {"cidr": cidr, **spec}})

    def put(self, resource: str, value: JsonObject) -> JsonObject:
        """Write without a comparison."""
        self.version += 1
        known = self.objects.setdefault(resource, {}).get(value["metadata"]["name"])
        uid = known["metadata"]["uid"] if known else f"uid-{self.version}"
        metadata = {
            "creationTimestamp": self._created_at,
            **value["metadata"],
            "resourceVersion": str(self.version),
            "uid": uid,
        }
        self.objects[resource][value["metadata"]["name"]] = copy.deepcopy({**value, "metadata": metadata})
        return self.objects[resource][value["metadata"]["name"]]

    def answer(self, request: ipam.Request) -> Any:
        """Obey a request. Raises Missing, Exists, Conflict."""
        table = self.objects.setdefault(request.resource, {})
        match request:
            case ipam.Get(name=name):
                if name not in table:
                    raise ipam.Missing(name)
                return copy.deepcopy(table[name])
            case ipam.List(labels=labels):
                return [
                    copy.deepcopy(value)
                    for value in table.values()
                    if labels.items() <= value["metadata"].get("labels", {}).items()
                ]
            case ipam.Create(value=value):
                if value["metadata"]["name"] in table:
                    raise ipam.Exists
                return copy.deepcopy(self.put(request.resource, value))
            case ipam.Replace(value=value) | ipam.Delete(value=value):
                known = table.get(value["metadata"]["name"])
                if known is None:
                    raise ipam.Missing
                if known["metadata"]["resourceVersion"] != value["metadata"]["resourceVersion"]:
                    raise ipam.Conflict
                if isinstance(request, ipam.Delete):
                    return table.pop(value["metadata"]["name"])
                return copy.deepcopy(self.put(request.resource, value))

    def step(self, steps: ipam.Steps[Any], request: ipam.Request) -> ipam.Request:
        """Answer one request of an operation; returns its next one. Raises StopIteration at its end."""
        try:
            answer = self.answer(request)
        except (ipam.Missing, ipam.Exists, ipam.Conflict) as error:
            return steps.throw(error)
        return steps.send(answer)

    def run(self, steps: ipam.Steps[Result]) -> Result:
        """Run an operation to its end."""
        try:
            request = next(steps)
            while True:
                request = self.step(steps, request)
        except StopIteration as end:
            result: Result = end.value
            return result

    def blocks(self) -> list[Block]:
        """The blocks, each checked."""
        return [Block.parse(value) for value in self.objects.get("ipamblocks", {}).values()]

    def held(self) -> dict[str, str]:
        """The handle of each used address. Fails if an address stands in two blocks."""
        held: dict[str, str] = {}
        for block in self.blocks():
            for used in block.used:
                assert used.address not in held, used
                held[used.address] = used.handle
        return held

    def owners(self) -> dict[str, str]:
        """The node of each block with a confirmed affinity. Fails if two nodes have one."""
        owners: dict[str, str] = {}
        for value in self.objects.get("blockaffinities", {}).values():
            spec = value["spec"]
            if spec["state"] == records.CONFIRMED and not records.is_deleted(value):
                assert spec["cidr"] not in owners, spec
                owners[spec["cidr"]] = spec["node"]
        return owners
