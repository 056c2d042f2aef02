"""The audit of IPAM."""

from typing import Any

from clients.agents.cni import ipam, leaks, plugin, records
from tests.harness.ipam_store import Store

NOW = 1_800_000_000.0
LATER = NOW + 2 * ipam.ORPHAN_AFTER_SECONDS


def add(store: Store, pod: str, *, now_seconds: float = NOW) -> str:
    attributes = records.pod_attributes(f"net.{pod}", node="n", namespace="default", pod=pod, now_seconds=now_seconds)
    limits, pools = store.run(ipam.read_limits()), store.run(ipam.read_pools())
    return store.run(ipam.assign(ipam.Node("n", now_seconds), attributes, pools, limits))


def pod(name: str, address: str) -> dict[str, Any]:
    annotations = {plugin.POD_IPS: f"{address}/32"}
    return {"metadata": {"namespace": "default", "name": name, "annotations": annotations}}


def test_what_leaks_and_what_does_not() -> None:
    store = Store(created_at=records.format_time(NOW))
    store.add_pool("10.0.0.0/28", blockSize=29)
    alive, moved, gone = (add(store, name) for name in ("alive", "moved", "gone"))
    add(store, "young", now_seconds=LATER - leaks.YOUNG_SECONDS)
    tunnel = records.tunnel_attributes("n")
    limits, pools = store.run(ipam.read_limits()), store.run(ipam.read_pools(use="Tunnel"))
    store.run(ipam.assign(ipam.Node("n", NOW), tunnel, pools, limits))
    store.put("ipamhandles", records.new_handle("net.orphan", "10.0.0.0/29"))
    stale = records.new_affinity("other", "10.0.0.0/29")
    stale["spec"]["state"] = records.CONFIRMED
    store.put("blockaffinities", stale)

    found = store.run(leaks.read(LATER, [pod("alive", alive), pod("moved", "10.0.0.99")]))
    assert {leak.subject: leak.handle for leak in found} == {
        moved: "net.moved",
        gone: "net.gone",
        "net.orphan": "net.orphan",
        "other-10-0-0-0-29": "",
    }
    for leak in found[:3]:
        store.run(ipam.release(leak.handle))
    assert set(store.held().values()) == {"net.alive", "net.young", tunnel.handle}
