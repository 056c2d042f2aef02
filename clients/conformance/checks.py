"""What becomes of a check, whichever end it tests."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from clients.conformance.link import Ended
from clients.conformance.report import Broken, NotApplicable, Outcome, Result


class AnyCheck(Protocol):
    """A check of a client or a server."""

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that it is about."""

    @property
    def name(self) -> str:
        """What it looks at."""


CheckType = TypeVar("CheckType", bound=AnyCheck)


async def result_of(check: AnyCheck, script: Awaitable[None], *, ended: str) -> Result:
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
    checks: Iterable[CheckType], perform: Callable[[CheckType], Awaitable[Result]], *, jobs: int, only: str
) -> list[Result]:
    """Performs the checks, `jobs` at a time; of one rule alone if `only` names it."""
    room = asyncio.Semaphore(jobs)

    async def in_turn(check: CheckType) -> Result:
        async with room:
            return await perform(check)

    chosen = [check for check in checks if not only or only in check.rules]
    return list(await asyncio.gather(*map(in_turn, chosen)))
