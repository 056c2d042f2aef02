"""Addresses under concurrency and crashes: nothing is given twice, and nothing is lost."""

import ipaddress
import random
from collections.abc import Generator, Iterator

import pytest

from clients.agents.cni import ipam, records
from clients.agents.cni.records import Attributes, Block
from tests.harness.ipam_store import Store

NOW = 1_800_000_000.0
LATER = NOW + 2 * ipam.ORPHAN_AFTER_SECONDS
NETWORK = "k8s-pod-network"


def attributes(handle: str, node: str = "one") -> Attributes:
    return records.pod_attributes(handle, node=node, namespace="default", pod=handle, now_seconds=NOW)


def add(handle: str, node: str = "one", *, now_seconds: float = NOW) -> ipam.Steps[str]:
    """What the plugin does for ADD."""
    limits = yield from ipam.read_limits()
    pools = yield from ipam.read_pools()
    return (yield from ipam.assign(ipam.Node(node, now_seconds), attributes(handle, node), pools, limits))


@pytest.fixture
def store() -> Store:
    store = Store()
    store.add_pool("10.0.0.0/28", blockSize=30)
    return store


def test_objects_look_as_calico_writes_them(store: Store) -> None:
    address = store.run(add("net.abc", "node-1"))

    (block,) = store.objects["ipamblocks"].values()
    assert block["metadata"]["name"] == records.cidr_name(block["spec"]["cidr"])
    assert block["kind"] == "IPAMBlock"
    assert block["apiVersion"] == "crd.projectcalico.org/v1"
    assert block["spec"]["affinity"] == "host:node-1"
    assert block["spec"]["allocations"] == [0, None, None, None]
    assert block["spec"]["unallocated"] == [1, 2, 3]
    assert block["spec"]["sequenceNumberForAllocation"] == {"0": block["spec"]["sequenceNumber"]}
    assert block["spec"]["attributes"] == [
        {
            "handle_id": "net.abc",
            "secondary": {
                "namespace": "default",
                "node": "node-1",
                "pod": "net.abc",
                "timestamp": "2027-01-15 08:00:00 +0000 UTC",
            },
        }
    ]
    (affinity,) = store.objects["blockaffinities"].values()
    assert affinity["metadata"]["name"] == f"node-1-{block['metadata']['name']}"
    assert affinity["metadata"]["labels"]["projectcalico.org/affinity-type"] == "host"
    assert affinity["spec"] == {
        "state": "confirmed",
        "node": "node-1",
        "type": "host",
        "cidr": block["spec"]["cidr"],
        "deleted": "false",
    }
    (handle,) = store.objects["ipamhandles"].values()
    assert handle["spec"] == {"handleID": "net.abc", "block": {block["spec"]["cidr"]: 1}, "deleted": False}
    assert address == str(Block.parse(block).network[0])


def test_an_attachment_gets_one_address(store: Store) -> None:
    store.run(add("net.a"))
    with pytest.raises(ipam.AlreadyAttached):
        store.run(add("net.a"))
    assert len(store.held()) == 1


def test_release_is_repeatable_and_knows_unknown_handles(store: Store) -> None:
    address = store.run(add("net.a"))
    assert store.run(ipam.addresses("net.a")) == [address]
    assert store.run(ipam.release("net.a")) == [address]
    assert store.run(ipam.release("net.a")) == []
    assert store.run(ipam.release("net.never")) == []
    assert store.held() == {}
    assert store.objects["ipamhandles"] == {}


def test_handles_that_differ_in_case_are_not_mixed_up(store: Store) -> None:
    address = store.run(add("net.A"))
    assert store.run(ipam.release("net.a")) == []
    assert list(store.held()) == [address]


def test_an_address_is_reused_as_late_as_possible(store: Store) -> None:
    first = store.run(add("net.a"))
    store.run(ipam.release("net.a"))
    assert [store.run(add(f"net.{number}")) for number in range(4)][-1] == first


def test_reserved_addresses_are_not_given_out(store: Store) -> None:
    store.put("ipreservations", {"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.0.0.0/29", "10.0.0.9/32"]}})
    given = {store.run(add(f"net.{number}")) for number in range(7)}
    assert given == {"10.0.0.8", *(f"10.0.0.{number}" for number in range(10, 16))}
    with pytest.raises(ipam.Exhausted):
        store.run(add("net.more"))


def test_a_node_claims_at_most_its_share_and_then_borrows(store: Store) -> None:
    store.put("ipamconfigs", {"metadata": {"name": "default"}, "spec": {"maxBlocksPerHost": 1}})
    store.run(add("net.other", "two"))
    for number in range(6):
        store.run(add(f"net.{number}", "one"))
    assert sorted(block.node for block in store.blocks()) == ["one", "two"]


def test_strict_affinity_borrows_nothing(store: Store) -> None:
    store.put("ipamconfigs", {"metadata": {"name": "default"}, "spec": {"maxBlocksPerHost": 1, "strictAffinity": True}})
    store.run(add("net.other", "two"))
    for number in range(4):
        store.run(add(f"net.{number}", "one"))
    with pytest.raises(ipam.Exhausted):
        store.run(add("net.more", "one"))


def test_an_empty_block_of_another_node_is_taken_when_it_is_old(store: Store) -> None:
    for node in ("one", "two", "three", "four"):
        store.run(add(f"net.{node}", node))
        store.run(ipam.release(f"net.{node}"))
    store.put("ipamconfigs", {"metadata": {"name": "default"}, "spec": {"strictAffinity": True}})
    with pytest.raises(ipam.Exhausted):
        store.run(add("net.five", "five", now_seconds=NOW + ipam.RECLAIM_AFTER_SECONDS - 1))
    store.run(ipam.release("net.five"))
    store.run(add("net.five", "five", now_seconds=NOW + ipam.RECLAIM_AFTER_SECONDS))
    assert store.owners() == {block.cidr: block.node for block in store.blocks()}


def test_a_released_address_of_calico_is_free_after_its_cooldown(store: Store) -> None:
    store.put(
        "ipamconfigs", {"metadata": {"name": "default"}, "spec": {"ipCooldownSeconds": 30, "maxBlocksPerHost": 1}}
    )
    for number in range(4):
        store.run(add(f"net.{number}"))
    (value,) = store.objects["ipamblocks"].values()
    value["spec"]["attributes"][2] = {"releasedAt": records.format_time(NOW)}
    with pytest.raises(ipam.Exhausted):
        store.run(add("net.new", now_seconds=NOW + 29))
    assert store.run(add("net.new", now_seconds=NOW + 30)) == str(Block.parse(value).network[2])


@pytest.mark.parametrize(
    "spec",
    [
        {"disabled": True},
        {"allowedUses": ["Tunnel"]},
        {"nodeSelector": "zone == 'a'"},
        {"assignmentMode": "Manual"},
        {"blockSize": 20},
        {"cidr": "fd00::/64"},
    ],
)
def test_pools_that_workloads_get_nothing_from(spec: dict[str, object]) -> None:
    store = Store()
    store.put("ippools", {"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/24", **spec}})
    assert store.run(ipam.read_pools()) == []


@pytest.mark.parametrize(
    "spec",
    [{"nodeSelector": "zone == 'a'"}, {"blockSize": 20}, {"blockSize": "many"}, {"cidr": "10.0.0.0/99"}, {"cidr": 7.5}],
)
def test_a_pool_that_cannot_be_used_is_named_and_does_no_harm_to_others(spec: dict[str, object]) -> None:
    store = Store()
    store.put("ippools", {"metadata": {"name": "odd"}, "spec": {"cidr": "10.0.0.0/24", **spec}})
    store.add_pool("10.1.0.0/24", name="good")
    left_out: list[str] = []
    assert [pool.name for pool in store.run(ipam.read_pools(left_out=left_out.append))] == ["good"]
    assert len(left_out) == 1
    assert left_out[0].startswith("IPPool odd is left out: ")


def test_named_pools_come_in_the_order_of_the_names() -> None:
    store = Store()
    store.add_pool("10.0.0.0/24", name="a")
    store.add_pool("10.1.0.0/24", name="b", assignmentMode="Manual")
    assert [pool.name for pool in store.run(ipam.read_pools(["b", "a"]))] == ["b", "a"]
    assert [pool.name for pool in store.run(ipam.read_pools())] == ["a"]


def test_collect_releases_what_is_not_valid_and_only_that(store: Store) -> None:
    store.run(add(f"{NETWORK}.valid"))
    stale = store.run(add(f"{NETWORK}.stale"))
    store.run(add(f"{NETWORK}.elsewhere", "two"))
    store.run(add("another-network.x"))
    store.put("ipamhandles", records.new_handle(f"{NETWORK}.orphan", "10.0.0.0/30"))
    with_crash = store.put("blockaffinities", records.new_affinity("one", "10.0.0.12/30"))

    released = store.run(ipam.collect(ipam.Node("one", LATER), NETWORK, frozenset({f"{NETWORK}.valid"})))

    assert released == [stale, f"{NETWORK}.orphan"]
    assert set(store.held().values()) == {f"{NETWORK}.valid", f"{NETWORK}.elsewhere", "another-network.x"}
    assert set(store.objects["ipamhandles"]) == set(store.held().values())
    assert with_crash["metadata"]["name"] not in store.objects["blockaffinities"]


def test_collect_spares_a_handle_whose_call_may_still_run(store: Store) -> None:
    young = Store(created_at=records.format_time(LATER))
    young.put("ipamhandles", records.new_handle(f"{NETWORK}.now", "10.0.0.0/30"))
    assert young.run(ipam.collect(ipam.Node("one", LATER + 1), NETWORK, frozenset())) == []


def test_a_malformed_block_is_left_alone(store: Store) -> None:
    store.run(add("net.a"))
    (value,) = store.objects["ipamblocks"].values()
    value["spec"]["unallocated"] = [0, 1, 2, 3]  # 0 is in use
    address = store.run(add("net.b"))
    assert ipaddress.ip_address(address) not in ipaddress.ip_network(value["spec"]["cidr"])
    with pytest.raises(records.Malformed):
        Block.parse(value)


def test_the_slower_of_two_nodes_gives_its_claim_up(store: Store) -> None:
    store.run(add("net.a", "one"))
    (cidr,) = store.owners()
    late = ipam._Attempt(
        ipam.Node("two", NOW), attributes("net.b", "two"), store.run(ipam.read_pools()), store.run(ipam.read_limits())
    )
    assert store.run(late._claim(cidr)) == ""
    assert store.owners() == {cidr: "one"}
    assert len(store.objects["blockaffinities"]) == 1


def test_a_stale_affinity_to_another_node_s_block_gives_no_right_to_it(store: Store) -> None:
    store.put("ipamconfigs", {"metadata": {"name": "default"}, "spec": {"strictAffinity": True}})
    store.run(add("net.a", "one"))
    (cidr,) = store.owners()
    stale = records.new_affinity("two", cidr)
    stale["spec"]["state"] = records.CONFIRMED
    store.put("blockaffinities", stale)
    address = store.run(add("net.b", "two"))
    assert ipaddress.ip_address(address) not in ipaddress.ip_network(cidr)
    assert store.owners() == {block.cidr: block.node for block in store.blocks()}


def test_a_block_that_is_used_meanwhile_is_not_taken(store: Store) -> None:
    store.run(add("net.a", "one"))
    (block,) = store.blocks()
    assert not store.run(ipam.release_block(block.cidr, "one", sequence=block.sequence))
    store.run(ipam.release("net.a"))
    assert not store.run(ipam.release_block(block.cidr, "one", sequence=block.sequence))  # empty, but another one
    assert not store.run(ipam.release_block(block.cidr, "two"))
    (block,) = store.blocks()
    assert store.run(ipam.release_block(block.cidr, "one", sequence=block.sequence))
    assert store.objects["ipamblocks"] == {}
    assert store.objects["blockaffinities"] == {}


def test_the_addresses_of_a_block_outlive_its_owner(store: Store) -> None:
    address = store.run(add("net.a", "one"))
    (block,) = store.blocks()
    assert store.run(ipam.release_block(block.cidr, "one"))
    assert store.owners() == {}
    assert store.held() == {address: "net.a"}
    assert store.run(ipam.release("net.a")) == [address]


def test_a_block_that_changes_while_it_is_being_taken_keeps_its_affinity(store: Store) -> None:
    store.run(add("net.a", "one"))
    store.run(ipam.release("net.a"))
    (block,) = store.blocks()
    steps = ipam.release_block(block.cidr, "one")
    request = next(steps)
    while not (isinstance(request, ipam.Replace) and request.resource == "ipamblocks"):
        request = store.step(steps, request)
    store.run(add("net.b", "one"))
    with pytest.raises(StopIteration) as end:
        store.step(steps, request)
    assert end.value.value is False
    assert store.owners() == {block.cidr: "one"}


def test_readers_see_the_mark_before_an_object_is_gone(store: Store) -> None:
    """Calico's other programs list objects, and rely on it."""
    store.run(add("net.a"))
    steps = ipam.release("net.a")
    request = next(steps)
    marked = False
    while not isinstance(request, ipam.Delete):
        request = store.step(steps, request)
        marked = any(map(records.is_deleted, store.objects["ipamhandles"].values()))
    assert marked


class World:
    """Calls of three nodes, one request at a time, in random order; each may crash before any request."""

    def __init__(self, seed: int, *, crash_rate: float) -> None:
        self.chance = random.Random(seed)
        self.crash_rate = crash_rate
        self.store = Store()
        # 16 addresses in four blocks for up to 12 attachments: nodes claim, borrow, reclaim and run out.
        self.store.add_pool("10.0.0.0/28", blockSize=30)
        if self.chance.random() < 0.3:
            self.store.put("ipamconfigs", {"metadata": {"name": "default"}, "spec": {"strictAffinity": True}})
        self.given: dict[str, str] = {}
        """The address of each attachment whose ADD has succeeded, and whose DEL has not begun."""
        self.crashes = 0

    def lives(self) -> list[Iterator[None]]:
        """One generator for each container; it steps its calls and ends without an address."""
        return [self.life(f"net.{number}", self.chance.choice(["one", "two", "three"])) for number in range(12)]

    def life(self, handle: str, node: str) -> Iterator[None]:
        """ADD, some time, DEL until it succeeds; twice, as a container that is started again has another identifier."""
        for run in ("a", "b"):
            attached = f"{handle}{run}"
            address: list[str] = []
            # All blocks are old enough to be reclaimed.
            yield from self.call(add(attached, node, now_seconds=NOW + self.chance.choice([0, 1000])), address)
            if address:
                assert address[0] not in self.given.values()
                assert self.store.held()[address[0]] == attached
                self.given[attached] = address[0]
                for _ in range(self.chance.randrange(30)):
                    yield
                del self.given[attached]
            while not (yield from self.call(ipam.release(attached), [])):
                yield

    def call(self, steps: ipam.Steps[object], result: list[str]) -> Generator[None, None, bool]:
        """Run an operation; returns whether it has ended without a crash. A failed ADD counts as ended."""
        try:
            request = next(steps)
            while True:
                yield
                if self.chance.random() < self.crash_rate:
                    self.crashes += 1
                    steps.close()
                    return False
                request = self.store.step(steps, request)
        except StopIteration as end:
            if isinstance(end.value, str):
                result.append(end.value)
            return True
        except ipam.IpamError:
            return True

    def run(self) -> None:
        """Step the lives in random order; what each attachment was given stays its own."""
        lives = self.lives()
        version = 0
        while lives:
            life = self.chance.choice(lives)
            try:
                next(life)
            except StopIteration:
                lives.remove(life)
            if version != self.store.version:
                version = self.store.version
                held = self.store.held()
                for attached, address in self.given.items():
                    assert held[address] == attached

    def settle(self) -> None:
        """What each node does with its next garbage collection."""
        for node in ("one", "two", "three"):
            self.store.run(ipam.collect(ipam.Node(node, LATER), "net", frozenset()))


@pytest.mark.parametrize("crash_rate", [0.0, 0.02, 0.1])
def test_nodes_that_claim_at_once_and_crash_lose_and_double_nothing(crash_rate: float) -> None:
    crashes = 0
    for seed in range(40):
        world = World(seed, crash_rate=crash_rate)
        world.run()
        crashes += world.crashes
        world.settle()
        assert world.store.held() == {}, seed
        assert world.store.objects.get("ipamhandles") == {}, seed
        blocks = {block.cidr: block for block in world.store.blocks()}
        assert world.store.owners() == {cidr: block.node for cidr, block in blocks.items() if block.node}, seed
        for block in blocks.values():
            assert sorted(block.unallocated) == [0, 1, 2, 3], seed
            assert block.attributes == [], seed
    assert (crashes > 0) is (crash_rate > 0)


def crash_points() -> int:
    """Number of requests of an ADD that claims a block."""
    store = Store()
    store.add_pool("10.0.0.0/28", blockSize=30)
    steps = add("net.a")
    request = next(steps)
    count = 1
    try:
        while True:
            request = store.step(steps, request)
            count += 1
    except StopIteration:
        return count


@pytest.mark.parametrize("survived", range(crash_points()))
def test_a_crash_at_each_step_of_an_add_is_healed_by_del_and_the_next_add(store: Store, survived: int) -> None:
    steps = add("net.a")
    request = next(steps)
    for _ in range(survived):
        request = store.step(steps, request)
    steps.close()

    store.run(ipam.release("net.a"))
    assert store.held() == {}
    assert store.objects.get("ipamhandles", {}) == {}
    address = store.run(add("net.b"))
    assert store.held() == {address: "net.b"}
    assert store.owners() == {block.cidr: "one" for block in store.blocks()}


@pytest.mark.parametrize("survived", range(7))
def test_a_crash_at_each_step_of_a_del_is_healed_by_the_next_del(store: Store, survived: int) -> None:
    store.run(add("net.a"))
    steps = ipam.release("net.a")
    try:
        request = next(steps)
        for _ in range(survived):
            request = store.step(steps, request)
        steps.close()
    except StopIteration:
        pass
    store.run(ipam.release("net.a"))
    assert store.held() == {}
    assert store.objects["ipamhandles"] == {}
