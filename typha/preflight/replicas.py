"""Looks at the other replicas: whether those that are to feed this one can, or whether any are known to be elected."""

import random
import socket
from collections.abc import Iterator

from cache.kube import tls_contexts
from clients import addresses
from typha import clock, settings
from typha.hub import bootstrap
from typha.peers import discovered, freshness, inquiry, watch
from typha.preflight.findings import Finding, Status
from typha.settings import feeds_file
from typha.upstream import choice, source

_CHECK = "upstream"
_ITSELF = "this is the replica itself"
_NOBODY = bytes(16)
"""In place of an incarnation: what asks here is no replica."""


async def upstreams(configured: settings.Settings) -> list[Finding]:
    """What the setting Upstream comes to; nothing if it is empty.

    Raises:
        ConfigurationError: the feeds file is invalid.
    """
    if configured.upstream == source.ELECTED:
        return list(_elected(configured))
    listed, feed = discovered.listed(configured.upstream), _feed(configured)
    if not listed or not feed:
        return []
    try:
        context = inquiry.make_context(configured)
    except tls_contexts.TlsUnusable as error:
        return [Finding(Status.WARNING, _CHECK, f"upstreams cannot be asked: {error}", "mend the file")]
    problems: dict[str, str] = {}
    found = await inquiry.resolved(listed, problems)
    problems |= {address: _ITSELF for address in found if _is_own(address, configured)}
    answers = await inquiry.ask_all(
        [one for one in found if one not in problems][: discovered.PEERS_MAX],
        feed,
        context=context,
        incarnation=_NOBODY,
        problems=problems,
    )
    policy = choice.Policy(configured.upstream_fallback_after_seconds, 0.0, roots_only=False)
    judge = choice.Choice(policy, _NOBODY, clock.monotonic(), random.Random())
    said = {address: judge.objection(clock.monotonic(), answer) for address, answer in answers.items()}
    problems |= {address: problem for address, problem in said.items() if problem}
    usable = {address: answer for address, answer in answers.items() if address not in problems}
    return list(_listed(configured, usable, problems))


def _is_own(address: str, configured: settings.Settings) -> bool:
    """Whether the service would listen there itself: on one of this machine's addresses, with its own port."""
    host, port = addresses.parse(address)
    if port != configured.server_port:
        return False
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _feed(configured: settings.Settings) -> str:
    """One that all replicas have; empty if there is none."""
    specs = feeds_file.load(configured.feeds_file) if configured.feeds_file else []
    return next(iter((*(spec.name for spec in specs), *bootstrap.awaited_names(configured))), "")


def _elected(configured: settings.Settings) -> Iterator[Finding]:
    if configured.connection_rebalancing_mode == watch.KUBERNETES or configured.peer_addresses:
        return
    yield Finding(
        Status.WARNING,
        _CHECK,
        "Upstream is `elected`, and no other replicas are known: this one watches the API server itself",
        "set ConnectionRebalancingMode to kubernetes, or PeerAddresses",
    )


def _listed(
    configured: settings.Settings, usable: dict[str, freshness.Answer], problems: dict[str, str]
) -> Iterator[Finding]:
    advice = "mend it, or take it off the list; another one is followed meanwhile"
    if not usable:
        seconds = configured.upstream_fallback_after_seconds
        advice = f"mend it: while none can be followed, the API server is watched instead, after {seconds:g} s"
    for address, problem in problems.items():
        if not usable or problem != _ITSELF:  # which a Service of all replicas has, too
            yield Finding(Status.WARNING, _CHECK, f"{address}: {problem}", advice)
    for address, answer in usable.items():
        hops = len(answer.upstreams or ())
        feeder = f"is fed through {hops} other replica{'s' if hops > 1 else ''}" if hops else "watches the API server"
        yield Finding(Status.OK, _CHECK, f"{address} answers, and {feeder}")
