"""``make fuzz``: every target for its share of the time, two at once, and a table of the results.

python -m fuzz [--time SECONDS] [TARGET...]     fuzz; exit code 1 if a target crashed
python -m fuzz --minimise [TARGET...]           make the corpus in the tree of what was found
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys

from fuzz import campaign, corpora
from fuzz.runs import C_TARGETS, prepare
from fuzz.target import TARGETS
from pyvmm.errors import EXIT_HOST, HostError

NO_ATHERIS = "fuzz: Python {} has no atheris here"
HINT = "  hint: its wheels are for Python 3.11 to 3.14 on x86-64: make fuzz PYTHON=python3.11"
MINUTES_10 = 600


def main(arguments: list[str]) -> int:
    """Run the command line."""
    known = [*TARGETS, *C_TARGETS]
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--time", type=int, default=MINUTES_10, metavar="SECONDS")
    parser.add_argument("--minimise", action="store_true")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(known))
    options = parser.parse_args(arguments)
    names = options.targets or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no target {unknown[0]}: choose from {', '.join(known)}")
    if set(names) & set(TARGETS) and importlib.util.find_spec("atheris") is None:
        print(f"{NO_ATHERIS.format(platform.python_version())}\n{HINT}", file=sys.stderr)
        return EXIT_HOST
    try:
        prepare(names)
    except HostError as error:
        print(f"fuzz: {error}\n  hint: {error.hint}", file=sys.stderr)
        return EXIT_HOST
    if options.minimise:
        return corpora.minimise(names)
    return campaign.run(names, options.time)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
