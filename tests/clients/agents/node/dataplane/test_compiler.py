"""What becomes of rules, sets and endpoints that need care: conditions that cannot be checked, names, conflicts."""

from collections.abc import Iterable

import pytest

from clients.agents.node import desired
from clients.agents.node.dataplane import base, compiler, rules, statements, table
from clients.agents.node.desired import Action, Changes, Peer, PortRange, Rule

TCP = 6
ICMP = 1


def rendered(rule: Rule, set_names: Iterable[str] = ()) -> list[statements.FilterRule]:
    return rules.render(rule, set_names={name: f"a-{name}" for name in set_names}, label="policy")


def verdicts(found: Iterable[statements.FilterRule]) -> list[str]:
    return [next(iter(line.statements[-1])) for line in found]


@pytest.mark.parametrize("action", [Action.ALLOW, Action.PASS, Action.LOG])
def test_a_condition_that_cannot_be_checked_never_allows(action: Action) -> None:
    assert rendered(Rule(action, unsupported="http")) == []
    assert rendered(Rule(action, source=Peer(sets=("unknown",)))) == []


def test_a_condition_that_cannot_be_checked_still_denies() -> None:
    assert verdicts(rendered(Rule(Action.DENY, protocol=TCP, unsupported="http"))) == ["drop"]
    assert len(rendered(Rule(Action.DENY, source=Peer(sets=("unknown",))))[0].statements) == 1


def test_rules_of_ipv6_are_left_out() -> None:
    assert rendered(Rule(Action.ALLOW, versions=(desired.IPV6,))) == []


@pytest.mark.parametrize(
    "rule",
    [
        Rule(Action.DENY, protocol=TCP, icmp=desired.Icmp(8, None)),
        Rule(Action.DENY, protocol=TCP, not_icmp=desired.Icmp(8, None)),
        Rule(Action.DENY, protocol=ICMP, destination=Peer(ports=(PortRange(80, 80),))),
        Rule(Action.DENY, protocol=ICMP, source=Peer(port_sets=("known",))),
        Rule(Action.DENY, icmp=desired.Icmp(8, None), destination=Peer(ports=(PortRange(80, 80),))),
    ],
)
def test_conditions_that_no_packet_meets_make_no_rule(rule: Rule) -> None:
    assert rendered(rule, ["known"]) == []


def test_alternatives_become_rules_and_many_become_a_set() -> None:
    few = tuple(PortRange(port, port) for port in range(80, 88, 2))
    many = tuple(PortRange(port, port) for port in range(80, 100, 2))
    assert len(rendered(Rule(Action.ALLOW, protocol=TCP, destination=Peer(ports=few)))) == len(few)
    assert len(rendered(Rule(Action.ALLOW, protocol=TCP, destination=Peer(ports=many)))) == 1
    nets = tuple(f"10.{number}.0.0/24" for number in range(3))
    both = Peer(ports=few, nets=nets)
    assert len(rendered(Rule(Action.ALLOW, protocol=TCP, destination=both))) == len(few) * len(nets)
    assert len(rendered(Rule(Action.ALLOW, protocol=TCP, destination=both, source=both))) == 1


def test_too_many_combinations_allow_nothing_and_deny_more() -> None:
    names = tuple(f"port-{number}" for number in range(17))
    rule = Rule(Action.ALLOW, protocol=TCP, source=Peer(port_sets=names), destination=Peer(port_sets=names))
    assert rendered(rule, names) == []
    denying = Rule(Action.DENY, protocol=TCP, source=Peer(port_sets=names), destination=Peer(port_sets=names))
    assert verdicts(rendered(denying, names)) == ["drop"]


def test_adjacent_and_overlapping_ports_are_one_range() -> None:
    ports = (PortRange(90, 95), PortRange(80, 89), PortRange(85, 92))
    (line,) = rendered(Rule(Action.ALLOW, protocol=TCP, destination=Peer(ports=ports)))
    assert line.statements[1] == statements.match(statements.DESTINATION_PORT, {"range": [80, 95]})


def test_a_comment_is_short_plain_and_tells_rules_apart() -> None:
    hostile = statements.rule('a"b\n' + "x" * 300, statements.ACCEPT)
    assert len(hostile.comment) <= statements.COMMENT_MAX_BYTES
    assert hostile.comment.isascii()
    assert not set('"\n') & set(hostile.comment)
    assert hostile.comment != statements.rule('a"b\n' + "x" * 300, statements.DROP).comment


def endpoint(interface: str, *nets: str) -> desired.Endpoint:
    return desired.Endpoint(interface, nets or ("10.0.0.1/32",), (), ())


def elements(compiled: compiler.Compiler, name: str) -> set[str]:
    return {element[0] for element in compiled.table.elements[name] if isinstance(element, tuple)}


@pytest.mark.parametrize("name", ["eth0", "lo", "cali", "cali-with-a-long-name", "cali*", 'cali" accept'])
def test_an_interface_with_another_name_is_cut_off(name: str) -> None:
    compiled = compiler.Compiler()
    compiled.apply(desired.Update(endpoints=Changes({"a": endpoint(name)})))
    assert elements(compiled, base.INGRESS_PROGRAMS) == set()
    assert compiled.refused() == ["a"]


def test_endpoints_with_the_same_interface_are_cut_off_until_one_is_gone() -> None:
    compiled = compiler.Compiler()
    compiled.apply(desired.Update(endpoints=Changes({"a": endpoint("cali1")})))
    compiled.apply(desired.Update(endpoints=Changes({"b": endpoint("cali1", "10.0.0.2/32")})))
    assert elements(compiled, base.EGRESS_PROGRAMS) == set()
    assert compiled.refused() == ["a", "b"]
    compiled.apply(desired.Update(endpoints=Changes(removed=frozenset({"a"}))))
    assert compiled.table.elements[base.SOURCES] == {("cali1", "10.0.0.2")}
    assert compiled.refused() == []


def test_nothing_is_left_of_what_is_gone() -> None:
    compiled = compiler.Compiler()
    empty = len(compiled.table.chains), len(compiled.table.sets)
    tier = desired.Tier("default", Action.DENY, ingress=("NetworkPolicy/a", "NetworkPolicy/missing"))
    allow = Rule(Action.ALLOW, source=Peer(sets=("s",)))
    compiled.apply(
        desired.Update(
            endpoints=Changes({"a": desired.Endpoint("cali1", ("10.0.0.1/32",), ("kns.a",), (tier,))}),
            policies=Changes({"NetworkPolicy/a": desired.Policy("default", "", (allow,), (), "")}),
            profiles=Changes({"kns.a": desired.Profile()}),
            sets=Changes({"s": desired.AddressSet(desired.SetType.NET, {"10.0.0.1/32"})}),
        )
    )
    assert len(compiled.table.chains) > empty[0]
    compiled.apply(
        desired.Update(
            endpoints=Changes(removed=frozenset({"a"})),
            policies=Changes(removed=frozenset({"NetworkPolicy/a"})),
            profiles=Changes(removed=frozenset({"kns.a"})),
            sets=Changes(removed=frozenset({"s"})),
        )
    )
    assert (len(compiled.table.chains), len(compiled.table.sets)) == empty
    assert not any(compiled.table.elements.values())


def test_a_set_changes_its_kind_with_its_first_net_and_its_rules_follow() -> None:
    compiled = compiler.Compiler()
    allow = Rule(Action.ALLOW, source=Peer(sets=("s",)))
    compiled.apply(
        desired.Update(
            policies=Changes({"NetworkPolicy/a": desired.Policy("default", "", (allow,), (), "")}),
            sets=Changes({"s": desired.AddressSet(desired.SetType.NET, {"10.0.0.1/32"})}),
        )
    )

    def kind_in_use() -> table.Kind:
        (name,) = {
            line.statements[0]["match"]["right"][1:]
            for name, chain in compiled.table.chains.items()
            if name.startswith("policy-i")
            for line in chain.rules
        }
        return compiled.table.sets[name]

    assert kind_in_use() is table.Kind.ADDRESSES
    compiled.apply(desired.Update(members={"s": desired.MemberChange(frozenset({"10.0.0.0/24"}), frozenset())}))
    assert kind_in_use() is table.Kind.NETS
    compiled.apply(desired.Update(members={"s": desired.MemberChange(frozenset(), frozenset({"10.0.0.0/24"}))}))
    assert kind_in_use() is table.Kind.ADDRESSES
    assert compiled.table.elements.keys() == compiled.table.sets.keys()


@pytest.mark.parametrize(
    ("values", "action"), [({}, "drop"), ({"DefaultEndpointToHostAction": "Accept"}, "accept"), ({"x": "y"}, "drop")]
)
def test_workloads_reach_the_host_only_if_the_settings_say_so(values: dict[str, str], action: str) -> None:
    assert base.defaults(desired.Settings(values=values)).endpoint_to_host_action == action
    last = base.chains(base.defaults(desired.Settings(values=values)))["input-host"].rules[-1]
    assert verdicts([last]) == [action]


def test_settings_that_are_wrong_mean_the_defaults() -> None:
    values = {"DefaultEndpointToHostAction": "Open", "VXLANPort": "70000", "WireguardEnabled": "perhaps"}
    found = base.defaults(desired.Settings(vxlan=True, values=values))
    assert found == base.Defaults("drop", base.DEFAULT_VXLAN_PORT, encrypted=True)
