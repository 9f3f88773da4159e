"""Measure for benchmarks/profile.py, in a host where time counts instructions.

    python3 _profile_inside.py <task >found      both are JSON

Each part is a run of its own, started like the console script. In one run Python reports the time
of each import. In the other, functions report when they begin and end (_profiled.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
CONSOLE_SCRIPT: Final = "from pyvmm.__main__ import entry; entry()"
INTERPRETER: Final = "import time; print(time.process_time_ns())"


def main() -> None:
    """Do the task from standard input."""
    task = json.load(sys.stdin)
    loaded = imports(["-c", CONSOLE_SCRIPT, *task["start"]])
    own = subprocess.run([sys.executable, "-c", INTERPRETER], capture_output=True, cwd="/")
    found = {
        "interpreter": int(own.stdout),
        "at_once": [name for name, _ in imports(["-c", "pass"])],
        "click": [name for name, _ in imports(["-c", "import click"])],
        "imports": loaded,
        "start": profiled([name for name, _ in loaded], task["start"], linux=False),
        "linux": profiled([name for name, _ in loaded], task["linux"], linux=True),
    }
    json.dump(found, sys.stdout)


def imports(arguments: list[str]) -> list[tuple[str, int]]:
    """Return each module that a process imports, in order, with its own time alone."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()  # the guest's first output, or the end
    process.kill()
    _, said = process.communicate()
    found = []
    for line in said.decode(errors="replace").splitlines():
        words = line.removeprefix("import time:").split("|")
        if len(words) == 3 and words[0].strip().isdigit():
            found.append((words[2].strip(), int(words[0]) * 1000))
    return found


def profiled(modules: list[str], arguments: list[str], *, linux: bool) -> Any:
    """Return the results of such a run."""
    out = HERE / "profile.json"
    out.unlink(missing_ok=True)
    code = (
        f"import sys; sys.path.append({str(HERE)!r}); import _profiled; "
        f"_profiled.run({str(out)!r}, {modules!r}, {linux!r}, {arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, cwd="/"
    )
    if not out.exists():
        sys.exit(f"{done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return json.loads(out.read_text(encoding="ascii"))


if __name__ == "__main__":
    main()
