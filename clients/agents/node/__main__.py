"""The commands of the node agent: `python -m clients.agents.node COMMAND`."""

import json
import sys

from clients.agents.node import judge, objects


def main(arguments: list[str]) -> int:
    """Runs a command and returns the exit code."""
    match arguments:
        case ["judge"]:
            try:
                result = judge.answer(json.load(sys.stdin))
            except (objects.ConversionFailed, ValueError, KeyError) as error:
                sys.stderr.write(f"judge: {error!r}\n")
                return 1
            json.dump(result, sys.stdout)
            return 0
    sys.stderr.write("usage: python -m clients.agents.node judge\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
