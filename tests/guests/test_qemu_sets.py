"""QEMU with KVM (-cpu host,sveN=on|off) accepts the same sets of vector lengths as pyvmm.

QEMU is Debian's for arm64, and runs in the emulated host.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.parts.tools import TOOLS_SUITE, through_loader, tree
from pyvmm.host.progress import Progress
from tests.e2e import vls

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(900)]

# A host, its lengths, and the lengths of the requests: one more.
ASKED = {
    "powers of two": (vls.Host("max,sve2048=on", vls.POWERS), sorted({*vls.POWERS, 384})),
    "a hole": (vls.HOLE, vls.EVERY[:4]),
    "4 quadwords": (vls.FOUR, vls.EVERY[:5]),
}
WHERE = [
    pytest.param((kernel, host.cpu), host, asked, id=f"{name}-{kernel}")
    for kernel in ("6.1", "7.2")
    for name, (host, asked) in ASKED.items()
]
on_each_host = pytest.mark.parametrize(
    ("host", "model", "asked"), WHERE, indirect=["host"], scope="module"
)

Lengths = tuple[int, ...]


class Qemu:
    """QEMU with KVM, in an emulated host."""

    def __init__(self, into: list[str]) -> None:
        root = tree("qemu-arm64", TOOLS_SUITE, ["qemu-system-arm:arm64"], Progress())
        firmware = ("-L", str(root / "usr/share/qemu"))
        program = "usr/bin/qemu-system-aarch64"
        self._command = [
            *into, *through_loader(root, program, *firmware, machine="aarch64"),
            "-accel", "kvm", "-M", "virt,gic-version=3", "-nodefaults", "-display", "none",
            "-S", "-qmp", "stdio",
        ]  # fmt: skip

    def run(self, cpu: str, *commands: dict[str, Any]) -> tuple[list[Any], str, int]:
        """Start a machine with that CPU, paused: return QMP replies, stderr and exit code."""
        document = [{"execute": "qmp_capabilities"}, *commands, {"execute": "quit"}]
        done = subprocess.run(
            [*self._command, "-cpu", cpu],
            input="".join(f"{json.dumps(line)}\n" for line in document),
            capture_output=True,
            text=True,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return [a for a in answers if "return" in a or "error" in a], done.stderr, done.returncode

    def takes(self, sets: list[Lengths]) -> list[Lengths]:
        """Return the sets that QEMU accepts for its host CPU."""
        asked = [
            {
                "execute": "query-cpu-model-expansion",
                "arguments": {"type": "full", "model": {"name": "host", "props": props(lengths)}},
            }
            for lengths in sets
        ]
        answers, said, code = self.run("host", *asked)
        assert (len(answers), code) == (len(sets) + 2, 0), said
        return [s for s, answer in zip(sets, answers[1:], strict=False) if "return" in answer]


def props(lengths: Lengths) -> dict[str, bool]:
    """Return QEMU's properties for exactly that set."""
    return {f"sve{bits}": bits in lengths for bits in vls.EVERY}


def cpu(lengths: Lengths) -> str:
    """Return the value of -cpu for exactly that set."""
    return ",".join(["host", *(f"{n}={'on' if on else 'off'}" for n, on in props(lengths).items())])


def subsets(lengths: Lengths) -> Iterator[Lengths]:
    """Return every subset, also the empty one."""
    return chain.from_iterable(combinations(lengths, n) for n in range(len(lengths) + 1))


@pytest.fixture(scope="module")
def qemu(host: list[str], pyvmm_cmd: list[str]) -> Qemu:
    return Qemu([*pyvmm_cmd, "host", "exec", *host[2:], "--"])


@on_each_host
def test_qemu_accepts_exactly_the_sets_that_pyvmm_accepts(
    host: list[str],
    model: vls.Host,
    asked: Lengths,
    qemu: Qemu,
    pyvmm_cmd: list[str],
    tmp_path: Path,
) -> None:
    probe = tmp_path / "probe.json"
    subprocess.run(
        [*pyvmm_cmd, "sve", "list", *host, "--json", "--probe", str(probe)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    sets = [*subsets(asked)]

    def works(lengths: Lengths) -> bool:
        explain = [*pyvmm_cmd, "sve", "explain", vls.show(lengths), "--on", str(probe)]
        return subprocess.run(explain, capture_output=True).returncode == 0

    taken = qemu.takes(sets)

    assert taken == [lengths for lengths in sets if works(lengths)]
    assert taken == model.legal
    print(f"\n{len(sets)} sets, {len(taken)} taken by both")


@on_each_host
def test_qemus_machine_starts_with_the_sets_that_pyvmm_accepts(
    host: list[str], model: vls.Host, asked: Lengths, qemu: Qemu
) -> None:
    for lengths in model.legal:
        _, said, code = qemu.run(cpu(lengths))
        assert (said, code) == ("", 0), lengths

    for lengths in vls.illegal(model)[:3]:
        _, said, code = qemu.run(cpu(lengths))
        assert code == 1, (lengths, said)
        assert "sve" in said
