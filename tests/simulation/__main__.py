"""`python -m tests.simulation SEED [SEED ...] [-v]`: runs seeds. With -v, it prints their history as it happens."""

import argparse
import sys
import time
import traceback

from tests.simulation import replicas, simulation


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(arguments: list[str]) -> int:
    """Run the seeds. Returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="+", metavar="SEED", help="a number, or a range FIRST-LAST")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the whole history")
    parser.add_argument("--replicas", action="store_true", help="several replicas in place of one service")
    chosen = parser.parse_args(arguments)
    failed = []
    run = replicas.run if chosen.replicas else simulation.run
    seeds = [seed for text in chosen.seeds for seed in _range(text)]
    begun = time.process_time()
    for seed in seeds:
        try:
            world = run(seed, tell=_print if chosen.verbose else None)
        except Exception as error:
            failed.append(seed)
            if len(seeds) == 1:
                traceback.print_exception(error)
            else:
                _print(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        if len(seeds) == 1:
            _print(f"seed {seed}: {world.events} events, fingerprint {world.fingerprint:016x}")
    _print(f"{len(seeds)} seeds, {len(failed)} failed, {time.process_time() - begun:.1f} s of CPU")
    return 1 if failed else 0


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
