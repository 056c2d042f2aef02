"""Asks candidates, acts on the choice between them and the API server, and keeps a link for each feed."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

import structlog

from cache.feeds import feed, followed
from cache.kube import tls_contexts
from typha import clock, settings
from typha.observability import logs
from typha.peers import discovered, freshness, inquiry
from typha.settings import machine
from typha.upstream import choice, limits, link

_log = structlog.get_logger("typha.upstream")
_monotonic = clock.monotonic

ELECTED = "elected"
_LOOK_SECONDS = 0.25
_ASK_SECONDS = 5.0
"""Between two questions to the upstream. Three that it does not answer end it (`freshness.ANSWER_SECONDS_MAX`)."""
_SEARCH_SECONDS = 1.0
"""Between two rounds of questions to all candidates, while there is no upstream."""
_DOUBT_SECONDS = 7.0
"""An upstream that has not answered for so long is not the only one that is asked."""
_RETURN_AFTER_SECONDS = 30.0
"""A replica that watches for want of an upstream goes back to one that has been there for 30 to 60 s: each change of
the source costs it a list or a comparison."""
_LEAVE_SECONDS_MAX = 60.0
"""How long a replica of an elected fleet that drains keeps its clients until another one watches in its place, and all
follow that one. That takes some ten seconds: until it is elected, has listed, and the others have asked it."""
_PROBLEMS_SHOWN = 3
_LINE_SECONDS = 60.0


class Hub(link.Sink, Protocol):
    """What is fed."""

    feeds: dict[str, feed.Feed]

    @property
    def followed_feeds(self) -> dict[str, followed.FollowedFeed]:
        """The feeds that wait for an upstream, or have one."""

    @property
    def stale_feeds(self) -> list[str]:
        """The feeds that nothing confirms."""

    def follow(self) -> None:
        """All feeds wait for an upstream."""

    def set_upstreams(self, upstreams: Sequence[bytes] | None) -> None:
        """What other replicas are told."""


class Source:
    """Where this replica's data comes from. Run `run` as a task.

    Args:
        candidates: the addresses of replicas that may be followed.
        watch: watches the API server until it is cancelled.
        api_answers: whether the API server answers a small request.
        must_watch: whether this replica is elected.
    """

    def __init__(
        self,
        configured: settings.Settings,
        hub: Hub,
        *,
        incarnation: bytes,
        max_value_bytes: int,
        candidates: Callable[[], list[str]],
        watch: Callable[[], Coroutine[Any, Any, None]],
        api_answers: Callable[[], Awaitable[bool]],
        must_watch: Callable[[], bool],
    ) -> None:
        self._settings = configured
        self._hub = hub
        self._incarnation = incarnation
        self._max_value_bytes = max_value_bytes
        self._room = limits.Room(limits.bytes_max(machine.read().memory_limit_bytes), self._followed_feeds)
        self._candidates = candidates
        self._watch = watch
        self._api_answers = api_answers
        self._must_watch = must_watch
        self.choice = choice.Choice(
            choice.Policy(
                fallback_after_seconds=configured.upstream_fallback_after_seconds,
                return_after_seconds=_RETURN_AFTER_SECONDS,
                roots_only=configured.upstream == ELECTED,
            ),
            incarnation,
            _monotonic(),
            random.Random(),
        )
        self._answers: dict[str, freshness.Answer] = {}
        self._problems: dict[str, str] = {}
        """Why candidates did not answer the last question to all, by address."""
        self._unusable_lines = logs.LineLimit(1, seconds=_LINE_SECONDS)
        self._had_contact = False
        self._lost = asyncio.Event()
        """The upstream has just been lost: it is time to ask."""
        self._api_answers_since: float | None = None
        self._watching: asyncio.Task[None] | None = None
        self._links: dict[str, tuple[link.Link, asyncio.Task[None]]] = {}
        self._followed: choice.Upstream | None = None
        self._told: tuple[bytes, ...] | None = None
        self.changes = dict.fromkeys(choice.Mode, 0)
        """How often the data has begun to come from there."""
        self.refusals = 0
        """How often an upstream was left because of what it sent."""

    @property
    def has_contact(self) -> bool:
        """Whether the upstream gives data for every feed. The one that it is asked for, it says is complete."""
        now, asked = _monotonic(), next(iter(self._hub.feeds), None)
        return bool(self._links) and all(
            one.gives_data(now, must_be_complete=name == asked) for name, (one, _) in self._links.items()
        )

    @property
    def confirmed_at(self) -> float | None:
        """When the API server last confirmed the feed that candidates are asked for."""
        asked = next(iter(self._hub.feeds.values()), None)
        return None if asked is None or not asked.synced_once else asked.last_confirmed

    async def run(self) -> None:
        """Chooses, forever."""
        self._tell(self.choice.upstreams, force=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_forever(), name="questions to upstreams")
            while True:
                now = _monotonic()
                self._forget_silent()
                has_contact = self.has_contact
                if self._had_contact and not has_contact:
                    self._lost.set()
                self._had_contact = has_contact
                decision = self.choice.look(now, self._facts())
                await self._act(tasks, decision)
                self._note_confirmed(now)
                await asyncio.sleep(_LOOK_SECONDS)

    async def leave(self, seconds: float) -> None:
        """The service ends, and another replica is to be elected in its place.

        Returns when this one and all others that answer follow that one; or if nobody answers, or after a while, at
        most this time. Before that this replica has newer data than the others: clients that it sends there would see
        objects deleted that have just been created, and then created again.
        """
        if self.choice.mode is not choice.Mode.WATCHING:
            return
        self.choice.hurry()
        self._lost.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _LEAVE_SECONDS_MAX)):
                while True:
                    if await self._is_left():
                        return
                    await asyncio.sleep(_SEARCH_SECONDS)

    async def _is_left(self) -> bool:
        name = next(iter(self._hub.feeds), None)
        if name is None:
            return True
        try:
            context = await asyncio.to_thread(self._make_context)
        except tls_contexts.TlsUnusable:
            return True
        answers = await inquiry.ask_all(await self._resolved({}), name, context=context, incarnation=self._incarnation)
        if not answers:
            return True
        return (
            self.choice.mode is choice.Mode.FOLLOWING
            and self.has_contact
            and all(
                answer.confirmed_at is not None
                and answer.upstreams != ()
                and self._incarnation not in (answer.upstreams or ())
                for answer in answers.values()
            )
        )

    def _facts(self) -> choice.Facts:
        return choice.Facts(
            answers=self._answers,
            confirmed_at=self.confirmed_at,
            has_contact=self.has_contact,
            is_stale=bool(self._hub.stale_feeds),
            must_watch=self._must_watch(),
            api_answers_since=self._api_answers_since if self.choice.wants_api else None,
        )

    async def _act(self, tasks: asyncio.TaskGroup, decision: choice.Decision) -> None:
        if decision.why:
            upstream = "" if decision.upstream is None else decision.upstream.address
            behind = {"behind_seconds": round(decision.behind_seconds, 1)} if decision.behind_seconds else {}
            found = list(self._all_problems().items()) if decision.mode is choice.Mode.WATCHING else []
            shown = "; ".join(f"{address}: {problem}" for address, problem in found[:_PROBLEMS_SHOWN])
            problems = {"problems": shown} if shown else {}
            _log.info(
                "Source of the data",
                mode=decision.mode.value,
                upstream=upstream,
                why=decision.why,
                **behind,
                **problems,
            )
            self.changes[decision.mode] += 1
        self._tell(decision.upstreams)
        if decision.mode is choice.Mode.WATCHING:
            await self._end_links(self._links)
            if self._watching is None:
                self._watching = tasks.create_task(self._watch(), name="watchers")
            return
        if self._watching is not None:
            await _end(self._watching)
            self._watching = None
            self._hub.follow()
        if decision.upstream != self._followed:
            await self._end_links(self._links)
        self._followed = decision.upstream
        feeds = self._hub.followed_feeds
        await self._end_links([name for name in self._links if name not in feeds])
        if decision.upstream is not None:
            for name, source in feeds.items():
                if name not in self._links:
                    self._links[name] = self._begin(tasks, source, decision.upstream)

    def _all_problems(self) -> dict[str, str]:
        """Why candidates cannot be followed, by address: they do not answer, or what they say speaks against it."""
        now = _monotonic()
        said = {address: self.choice.objection(now, answer) for address, answer in self._answers.items()}
        return self._problems | {address: problem for address, problem in said.items() if problem}

    def _begin(
        self, tasks: asyncio.TaskGroup, source: followed.FollowedFeed, upstream: choice.Upstream
    ) -> tuple[link.Link, asyncio.Task[None]]:
        made = link.Link(
            source,
            upstream,
            self._hub,
            room=self._room,
            max_value_bytes=self._max_value_bytes,
            make_context=self._make_context,
            distrust=self._distrust,
        )
        return made, tasks.create_task(made.run(), name=f"upstream {source.name}")

    def _followed_feeds(self) -> Iterable[followed.FollowedFeed]:
        return self._hub.followed_feeds.values()

    def _distrust(self, incarnation: bytes) -> None:
        self.refusals += 1
        self.choice.avoid(_monotonic(), incarnation)

    async def _end_links(self, names: Sequence[str] | dict[str, Any]) -> None:
        for name in list(names):
            await _end(self._links.pop(name)[1])

    def _tell(self, upstreams: tuple[bytes, ...] | None, *, force: bool = False) -> None:
        if force or upstreams != self._told:
            self._told = upstreams
            self._hub.set_upstreams(upstreams)

    def _make_context(self) -> ssl.SSLContext | None:
        return inquiry.make_context(self._settings)

    # Questions.

    def _forget_silent(self) -> None:
        """Forgets what candidates have said that do not answer any more."""
        old = _monotonic() - freshness.ANSWER_SECONDS_MAX
        self._answers = {one: answer for one, answer in self._answers.items() if answer.asked_at >= old}

    async def _ask_forever(self) -> None:
        while True:
            await self._ask()
            if self.choice.wants_api:
                answers = await self._api_answers()
                if not answers:
                    self._api_answers_since = None
                elif self._api_answers_since is None:
                    self._api_answers_since = _monotonic()
            else:
                self._api_answers_since = None
            is_settled = self.choice.mode is not choice.Mode.SEARCHING and not self.choice.wants_api
            seconds = _ASK_SECONDS if is_settled and not self._is_leaving else _SEARCH_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(freshness.jittered(seconds)):
                    await self._lost.wait()
            self._lost.clear()

    @property
    def _is_leaving(self) -> bool:
        return self.choice.mode is choice.Mode.WATCHING and self.choice.upstreams is not None

    async def _ask(self) -> None:
        if self.choice.mode is choice.Mode.WATCHING and self._must_watch():
            return
        names = list(self._hub.feeds)
        if not names:
            return
        try:
            context = await asyncio.to_thread(self._make_context)
        except tls_contexts.TlsUnusable as error:
            self._problems = {"TLS": str(error)}
            if self._unusable_lines.allows():
                _log.warning("Cannot ask upstreams", error=str(error))
            return
        upstream = self.choice.upstream
        answer = None if upstream is None else self._answers.get(upstream.address)
        if upstream is not None and answer is not None and self.has_contact:
            heard = await inquiry.ask(upstream.address, names[0], context=context, incarnation=self._incarnation)
            if heard is not None:
                self._answers[upstream.address] = heard
                await self._ask_of_others(upstream, names[1:], context)
                return
            if _monotonic() - answer.asked_at < _DOUBT_SECONDS:
                return
        problems: dict[str, str] = {}
        found = await self._resolved(problems)
        answers = await inquiry.ask_all(
            found, names[0], context=context, incarnation=self._incarnation, problems=problems
        )
        self._problems = problems
        if upstream is not None and upstream.address not in answers and not self.has_contact:
            self._answers.pop(upstream.address, None)  # it is gone
        self._answers |= answers

    async def _ask_of_others(
        self, upstream: choice.Upstream, names: Sequence[str], context: ssl.SSLContext | None
    ) -> None:
        """Asks when the other feeds were confirmed."""
        for name in names:
            answer = await inquiry.ask(upstream.address, name, context=context, incarnation=self._incarnation)
            source = self._hub.followed_feeds.get(name)
            if answer is not None and answer.incarnation == upstream.incarnation and source is not None:
                _confirm(source, answer)

    def _note_confirmed(self, now: float) -> None:
        """The feeds are as fresh as the upstream says, and no fresher."""
        upstream = self.choice.upstream
        answer = None if upstream is None else self._answers.get(upstream.address)
        is_doubted = (
            answer is None
            or answer.confirmed_at is None
            or now - answer.confirmed_at > freshness.CONFIRMED_SECONDS_MAX + freshness.ANSWER_SECONDS_MAX
        )
        for source in self._hub.followed_feeds.values():
            source.is_doubted = is_doubted
        first = next(iter(self._hub.followed_feeds.values()), None)
        if first is None or answer is None or upstream is None:
            return
        if answer.incarnation == upstream.incarnation:
            _confirm(first, answer)

    async def _resolved(self, problems: dict[str, str]) -> list[str]:
        return (await inquiry.resolved(self._candidates(), problems))[: discovered.PEERS_MAX]


def _confirm(source: followed.FollowedFeed, answer: freshness.Answer) -> None:
    if answer.confirmed_at is not None:
        source.confirm(answer.confirmed_at)


async def _end(task: asyncio.Task[None]) -> None:
    """Ends a task. What it has failed with ends the group that it is in."""
    task.cancel()
    await asyncio.wait([task])
