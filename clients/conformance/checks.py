"""Checks, and what becomes of them, whichever end they test."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from clients.conformance.link import Ended
from clients.conformance.report import Broken, NotApplicable, Outcome, Result

Subject = TypeVar("Subject")
"""What a script works with: a run of the client program, or connections to the server."""


class Check(NamedTuple, Generic[Subject]):
    """One check, and the rules that it is about."""

    rules: tuple[str, ...]
    name: str
    script: Callable[[Subject], Awaitable[None]]
    needs: str = ""
    """Clients that it applies to: `rejected.VERIFYING`, those that offer the feature of this name, or all."""


class Checks(list[Check[Subject]]):
    """The checks of a module."""

    def add(
        self, rules: str, name: str, needs: str = ""
    ) -> Callable[[Callable[[Subject], Awaitable[None]]], Callable[[Subject], Awaitable[None]]]:
        """Makes the decorated script a check of these rules."""

        def add(script: Callable[[Subject], Awaitable[None]]) -> Callable[[Subject], Awaitable[None]]:
            self.append(Check(tuple(rules.split()), name, script, needs))
            return script

        return add


async def result_of(check: Check[Subject], script: Awaitable[None], *, ended: str) -> Result:
    """Waits for the check's script. `ended` says what it means if the connection ends, or nothing comes."""
    try:
        await script
    except Broken as error:
        rules = (error.rule, *(rule for rule in check.rules if rule != error.rule))
        return Result(rules, check.name, Outcome.FAIL, error.seen)
    except NotApplicable as error:
        return Result(check.rules, check.name, Outcome.NOT_APPLICABLE, str(error))
    except (Ended, TimeoutError):
        return Result(check.rules, check.name, Outcome.FAIL, ended)
    return Result(check.rules, check.name, Outcome.PASS)


async def perform_all(
    checks: Iterable[Check[Subject]],
    perform: Callable[[Check[Subject]], Awaitable[Result]],
    *,
    jobs: int,
    only: str,
) -> list[Result]:
    """Performs the checks, `jobs` at a time; of one rule alone if `only` names it."""
    room = asyncio.Semaphore(jobs)

    async def in_turn(check: Check[Subject]) -> Result:
        async with room:
            return await perform(check)

    chosen = [check for check in checks if not only or only in check.rules]
    return list(await asyncio.gather(*map(in_turn, chosen)))
