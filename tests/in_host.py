"""Run the tests marked `kvm` on an arm64 /dev/kvm: here, or in the emulated host.

Inside, the interpreter and pyvmm are the emulated host's. pytest comes from this environment,
because it is pure Python.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from pyvmm.errors import VmmError
from pyvmm.host import HostSettings, forward, is_local, models
from tests.runtime import own_runtime_dir

# Without hypothesis's plugin, which is not pure Python.
PYTEST = ["python3", "-m", "pytest", "-m", "kvm and not matrix", "-p", "no:cacheprovider"]
PYTEST += ["-p", "no:hypothesispytest"]


MARK = "pytest.mark.kvm"


def _files() -> list[str]:
    """Return the files with such tests: to collect the others is slow in the host."""
    here = Path(__file__)
    found = (f for f in sorted(here.parent.rglob("test_*.py")) if MARK in f.read_text())
    return [os.path.relpath(f) for f in found]


def main() -> int:
    """Run pytest with the arguments (by default every such file) and return its exit code."""
    arguments = sys.argv[1:]
    if not any(a.partition("::")[0].endswith(".py") for a in arguments):
        arguments += _files()
    names = {"kind": "", "kernel": "_KERNEL", "qemu": "_QEMU", "cpu": "_CPU",
             "machine": "_MACHINE", "append": "_APPEND"}  # fmt: skip
    chosen = {
        name: value
        for name, ending in names.items()
        if (value := os.environ.get(f"PYVMM_HOST{ending}"))
    }
    kind = {"kind": chosen.pop("kind")} if "kind" in chosen else {}
    model = os.environ.get("PYVMM_HOST_MODEL")
    settings = HostSettings(**kind, **models.combined(model, chosen))
    if is_local(settings):
        os.execv(sys.executable, [sys.executable, *PYTEST[1:], *arguments])
    os.environ["PYTHONPATH"] = sysconfig.get_path("purelib")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with own_runtime_dir("kvm"):
        return forward(settings, [*PYTEST, *arguments])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VmmError as error:
        print(f"pyvmm: {error}\n  hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
