"""A scripted server that tests a client program. Each check starts the program anew, with an address of its own.

The program prints a line `state STATUS SEQUENCE KEYS DIGEST` after each status other than catching-up, with `-` for
what it does not know, and may print `put KEY` and `delete KEY` for each change that it passes on. Pongs and the ends
of connections show the rest.
"""

import functools
from collections.abc import Collection
from typing import Final

from clients.conformance import checks, rejected, wire
from clients.conformance.against_client import following, handshake, liveness, positions, resume, subscriptions
from clients.conformance.against_client.run import Options, Run
from clients.conformance.checks import Check
from clients.conformance.report import Outcome, Result

__all__ = ["CHECKS", "Options", "run_checks"]


async def _reject(case: rejected.ToClient, run: Run) -> None:
    if case.after == "nothing":
        link, _ = await run.greeted()
    elif case.after == "preface":
        link, _ = await run.greeted()
        link.send(wire.PREFACE)
    elif case.after in ("agreed", "dictionary"):
        link, _ = await run.ready(features=[rejected.ZSTD, rejected.DICTIONARIES])
        if case.after == "dictionary":
            link.send(wire.frame(wire.DICTIONARY_TYPE, wire.DICTIONARY_NUMBER, wire.DICTIONARY))
        await run.reaches(link, 0)
    elif case.after == "hello":
        link, _ = await run.ready()
        await run.reaches(link, 0)
    else:
        link = await run.following()
    link.send(case.data)
    await run.rejects(link, case.rule, case.name)


CHECKS: Final[tuple[Check[Run], ...]] = (
    *handshake.CHECKS,
    *following.CHECKS,
    *liveness.CHECKS,
    *positions.CHECKS,
    *resume.CHECKS,
    *subscriptions.CHECKS,
    *(
        Check((case.rule,), f"rejects {case.name} (after {case.after})", functools.partial(_reject, case), case.needs)
        for case in rejected.TO_CLIENTS
    ),
)


async def _perform(check: Check[Run], options: Options, *, features: Collection[str]) -> Result:
    if check.needs == rejected.VERIFYING and not options.is_verifying:
        return Result(check.rules, check.name, Outcome.NOT_APPLICABLE, "for verifying clients")
    if check.needs == rejected.SUBSCRIPTIONS:
        if not options.subscribing:
            return Result(check.rules, check.name, Outcome.NOT_APPLICABLE, "needs --subscribing")
        options = options._replace(command=options.subscribing)
    elif check.needs not in ("", rejected.VERIFYING, *features):
        return Result(check.rules, check.name, Outcome.NOT_APPLICABLE, f"for clients that offer {check.needs}")

    async def script() -> None:
        async with Run(options).started() as run:
            await check.script(run)

    return await checks.result_of(check, script(), ended="the client has closed the connection")


async def run_checks(options: Options, *, jobs: int = 4, only: str = "") -> list[Result]:
    """Tests the client. `only` selects the checks of a rule, such as O6.

    Raises:
        Broken: the client does not even connect and greet.
        OSError: the program cannot be started.
    """
    async with Run(options).started() as run:
        _, hello = await run.greeted()

    async def perform(check: Check[Run]) -> Result:
        return await _perform(check, options, features=hello.features)

    return await checks.perform_all(CHECKS, perform, jobs=jobs, only=only)
