"""`typha explain`: what became of an object, in text and JSON."""

import asyncio
import json
import pathlib

import msgspec
import pytest

from cache import objects
from tests.harness import admin_stand, hub_stand, one_of_each
from typha.admin import answers
from typha.cli import explain
from typha.ipc import messages


async def test_keys_refusals_and_what_is_unknown(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = admin_stand.calico_hub()
    [policy] = [one for one in one_of_each.EXAMPLES if one.kind == "NetworkPolicy"]
    broken = policy._replace(metadata={"name": "bad", "namespace": "prod"}, content={"spec": {"selector": "((("}})
    made.apply(admin_stand.event(broken))
    made.skipped(objects.SkippedObject(policy.type, "prod", "odd", "undecodable", "not\x1b JSON\x9b"))
    made.commit()

    async with admin_stand.serving(made, tmp_path) as path:

        async def explained(*arguments: str) -> tuple[int, str, str]:
            return await admin_stand.run(capsys, "explain", *arguments, "--server", path)

        code, output, errors = await explained("pod", "web-1", "-n", "prod")
        assert (code, errors) == (0, "")
        assert "core/v1/pods prod/web-1" in output
        assert "/calico/v1/host/n1/workload/k8s/prod%2fweb-1/endpoint/eth0" in output
        assert "revision 7" in output
        code, output, _ = await explained("node", "n1")
        assert [line.split(":")[0] for line in output.splitlines() if line.startswith("  feed")] == [
            *("  feed felix", "  feed bgp", "  feed tunnel-ip-allocation"),
        ]
        code, output, _ = await explained("networkpolicy", "bad", "-n", "prod")
        assert code == 0
        assert "refused" in output
        assert "not a selector" in output
        code, output, _ = await explained("networkpolicy", "odd", "-n", "prod")
        assert (code, "undecodable: not\\x1b JSON" in output) == (0, True)
        code, output, _ = await explained("pod", "none")
        assert (code, output) == (1, "pods default/none: no feed has a key of it, and none refused it\n")
        code, output, errors = await explained("secret", "x")
        assert (code, "no feed has secrets" in errors) == (1, True)
        code, output, _ = await explained("pod", "web-1", "-n", "prod", "--json")
        [one] = json.loads(output)["objects"]
        assert one["feeds"][0]["keys"][0]["sequence"] > 0
        code, output, _ = await explained("networkpolicy", "odd", "-n", "prod", "--json")
        assert all(map(str.isprintable, output.splitlines()))
        assert "not\x1b JSON\x9b" in json.loads(output)["objects"][0]["refusal"]["detail"]
    made.close()


async def test_names_the_clients_that_lack_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand = hub_stand.HubStand()
    worker = stand.add_worker()
    worker.say(messages.Ready())
    stand.put("p")
    async with admin_stand.serving(stand.hub, tmp_path) as path:
        running = asyncio.create_task(admin_stand.run(capsys, "explain", "pod", "p", "--server", path))
        request = 0
        while not request:
            await asyncio.sleep(0.001)
            request = sum(message.request for message in worker.hear() if isinstance(message, messages.ListClients))
        clients = [
            msgspec.convert(
                [number, "10.0.0.1:5", f"node-{number}", *[""] * 4, "web", "native", "snapshot", 0, 1.5, 0, 2, 3.0],
                messages.ConnectedClient,
            )
            for number in range(15)
        ]
        worker.say(messages.ClientSlice(request, clients, True))
        code, output, _ = await running
    assert code == 0
    assert "feed web: 1 key, sent to 0 of 15 clients" in output
    assert "not yet: node-0 (snapshot, at sequence 0, lag 1.5s, worker 1)" in output
    assert "not yet: 5 more clients" in output
    worker.close()
    stand.hub.close()


@pytest.mark.parametrize(
    ("kind", "resource"),
    [
        *(("pod", "pods"), ("po", "pods"), ("NS", "namespaces"), ("sa", "serviceaccounts"), ("svc", "services")),
        *(("gnp", "globalnetworkpolicies"), ("networkpolicy", "networkpolicies"), ("ippool", "ippools")),
        *(("knp", "networkpolicies"), ("cnp", "clusternetworkpolicies"), ("hep", "hostendpoints")),
        *(
            ("nodestatus", "caliconodestatuses"),
            ("widget", "widgets"),
            ("livemigration", "virtualmachineinstancemigrations"),
        ),
    ],
)
def test_kinds_and_their_resources(kind: str, resource: str) -> None:
    assert explain.resource_of(kind) == resource


def test_every_kind_has_the_resource_of_its_example() -> None:
    assert {one.kind: explain.resource_of(one.kind) for one in one_of_each.EXAMPLES if one.kind != "Profile"} == {
        one.kind: one.resource for one in one_of_each.EXAMPLES if one.kind != "Profile"
    }


def test_times_that_are_forgotten_and_keys_without_a_value() -> None:
    keys = [
        answers.HeldKey(key="/a", sequence=3, value_bytes=10),
        answers.HeldKey(key="/b", note="not a selector"),
    ]
    fate = answers.Fate(feed="felix", keys=keys, clients=2)
    lines = list(explain.text(answers.Explained(type="core/v1/pods", name="n", feeds=[fate]), now=100.0))
    assert "      sequence 3, published longer ago than is remembered, revision -, 10 B" in lines
    assert "      no value, not a selector" in lines
