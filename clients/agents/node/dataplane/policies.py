"""Policies and profiles as chains of the table, and what endpoints make of them. Pure.

- A policy or profile has a chain for each direction, named by a hash of its key. A change of its rules changes these
  chains and no others.
- The sequence of a tier's policies, and the sequence of an endpoint's tiers and profiles, are chains named by a hash of
  their content. Endpoints with the same policies share them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clients.agents.node import desired
from clients.agents.node.dataplane import rules, statements
from clients.agents.node.dataplane.names import name_of
from clients.agents.node.dataplane.table import Chain, Table

_LETTERS = {desired.Direction.INGRESS: "i", desired.Direction.EGRESS: "e"}
POLICY, PROFILE = "policy", "profile"

MISSING = Chain((statements.rule("missing policy", statements.DROP),))
"""Stands for a policy that an endpoint names and that is not there."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A chain that is named by its content, and the chains that it leads to."""

    name: str
    chain: Chain
    parts: tuple["Sequence | str", ...]


class PolicyChains:
    """Keeps the chains of policies, and the shared chains while something uses them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[tuple[str, str], desired.Policy | desired.Profile] = {}
        """By kind, `POLICY` or `PROFILE`, and key."""
        self._sets: dict[tuple[str, str], frozenset[str]] = {}
        self._users: dict[str, set[tuple[str, str]]] = {}
        """Keys of sets to the policies and profiles that name them."""
        self._uses: Counter[str] = Counter()
        """Names of chains to the number of chains and endpoints that lead there."""
        self._own_chains: set[str] = set()
        """Chains of policies and profiles that are known."""

    def apply(self, update: desired.Update, *, renamed_sets: Iterable[str], set_names: Mapping[str, str]) -> None:
        """Applies changed policies and profiles, and renders again those whose sets have other names."""
        for kind, removed in ((POLICY, update.policies.removed), (PROFILE, update.profiles.removed)):
            for key in removed:
                self._remove(kind, key)
        changed = {user for key in renamed_sets for user in self._users.get(key, ())}
        sections: tuple[tuple[str, Mapping[str, desired.Policy | desired.Profile]], ...] = (
            (POLICY, update.policies.set),
            (PROFILE, update.profiles.set),
        )
        for kind, section in sections:
            for key, policy in section.items():
                self._known[kind, key] = policy
                changed.add((kind, key))
        for kind, key in changed:
            if (kind, key) in self._known:
                self._put(kind, key, set_names)

    def hold(self, sequence: Sequence) -> None:
        """Makes sure that a shared chain is there, until it is released as often."""
        self._uses[sequence.name] += 1
        if self._uses[sequence.name] > 1:
            return
        self._table.put_chain(sequence.name, sequence.chain)
        for part in sequence.parts:
            if isinstance(part, Sequence):
                self.hold(part)
            else:
                self._uses[part] += 1
                self._settle(part)

    def release(self, sequence: Sequence) -> None:
        """Ends one use of a shared chain."""
        self._uses[sequence.name] -= 1
        if self._uses[sequence.name]:
            return
        del self._uses[sequence.name]
        self._table.drop_chain(sequence.name)
        for part in sequence.parts:
            if isinstance(part, Sequence):
                self.release(part)
            else:
                self._uses[part] -= 1
                self._settle(part)

    def _put(self, kind: str, key: str, set_names: Mapping[str, str]) -> None:
        policy = self._known[kind, key]
        sets = frozenset(name for rule in (*policy.ingress, *policy.egress) for name in rule.set_names)
        self._forget_sets(kind, key)
        self._sets[kind, key] = sets
        for name in sets:
            self._users.setdefault(name, set()).add((kind, key))
        for direction, wanted in (
            (desired.Direction.INGRESS, policy.ingress),
            (desired.Direction.EGRESS, policy.egress),
        ):
            rendered = [
                line
                for rule in wanted
                for line in rules.render(rule, set_names=set_names, label=key, in_tier=kind == POLICY)
            ]
            name = chain_name(kind, key, direction)
            self._own_chains.add(name)
            self._table.put_chain(name, Chain(tuple(rendered)))

    def _remove(self, kind: str, key: str) -> None:
        if self._known.pop((kind, key), None) is not None:
            self._forget_sets(kind, key)
            for direction in desired.Direction:
                self._own_chains.discard(chain_name(kind, key, direction))
                self._settle(chain_name(kind, key, direction))

    def _forget_sets(self, kind: str, key: str) -> None:
        for name in self._sets.pop((kind, key), ()):
            self._users[name].discard((kind, key))
            if not self._users[name]:
                del self._users[name]

    def _settle(self, name: str) -> None:
        """Closes or drops the chain of a policy that is not known."""
        if name in self._own_chains:
            return
        if self._uses[name]:
            self._table.put_chain(name, MISSING)
        else:
            del self._uses[name]
            if name in self._table.chains:
                self._table.drop_chain(name)


def chain_name(kind: str, key: str, direction: desired.Direction) -> str:
    """The chain of a policy or profile in one direction."""
    return name_of(f"{kind}-{_LETTERS[direction]}", key)


def program(endpoint: desired.Endpoint, direction: desired.Direction) -> Sequence:
    """The chain that decides about all new connections of an endpoint in one direction."""
    counting = [tier for tier in endpoint.tiers if tier.enforced(direction)]
    tiers = [_tier(tier, direction) for tier in counting]
    profiles = [chain_name(PROFILE, key, direction) for key in endpoint.profiles]
    names = [*(tier.name for tier in tiers), *profiles]
    labels = [*(f"tier {tier.name}" for tier in counting), *(f"profile {key}" for key in endpoint.profiles)]
    lines = [statements.rule(label, statements.jump(name)) for label, name in zip(labels, names, strict=True)]
    return Sequence(
        name_of(f"endpoint-{_LETTERS[direction]}", " ".join(names)),
        Chain((*lines, statements.rule("no match", statements.DROP))),
        (*tiers, *profiles),
    )


def _tier(tier: desired.Tier, direction: desired.Direction) -> Sequence:
    policies = [chain_name(POLICY, key, direction) for key in tier.enforced(direction)]
    lines: list[statements.FilterRule] = []
    for key, name in zip(tier.enforced(direction), policies, strict=True):
        lines.append(statements.rule(key, statements.jump(name)))
        lines.append(statements.rule("pass", statements.HAS_PASS_MARK, statements.CLEAR_PASS_MARK, statements.RETURN))
    if tier.default_action is not desired.Action.PASS:
        lines.append(statements.rule(f"end of tier {tier.name}", statements.DROP))
    content = " ".join((tier.name, tier.default_action, *policies))
    return Sequence(name_of(f"tier-{_LETTERS[direction]}", content), Chain(tuple(lines)), tuple(policies))
