"""The vector lengths of `pyvmm sve`, compared with those that the kernel's own programs see.

sve-probe-vls asks prctl(PR_SVE_SET_VL) and RDVL for every length; vlset asks for one and starts
rdvl-sve at what it got.  Both run in the host and in its guests.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import linux, selftests
from tests.linux import PROMPT, Session

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True, scope="module"),
]

EACH = "for n in $(seq 16 16 256); do {0}/vlset $n {0}/rdvl-sve; done"

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(host: list[str], pyvmm_cmd: list[str]) -> Ask:
    """Return the JSON of a `pyvmm sve` command."""

    def sve(*arguments: str) -> dict[str, Any]:
        command = [*pyvmm_cmd, "sve", *arguments, *host, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    return sve


def bits(said: str) -> list[int]:
    """Return the lengths in bits that rdvl-sve printed in bytes."""
    return [8 * int(line) for line in said.split()]


def show(lengths: list[int]) -> str:
    return ",".join(map(str, lengths))


def test_list_and_explain_agree_with_the_kernels_programs_in_the_host(
    host: list[str], pyvmm_cmd: list[str], ask: Ask, fp: Path
) -> None:
    def shell(script: str) -> str:
        command = [*pyvmm_cmd, "host", "exec", *host[2:], "--", "sh", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    listed = ask("list")

    assert listed["agrees"] is True
    assert selftests.probed(shell(f"{fp}/sve-probe-vls")) == listed["sve"]["kvm"]
    whole = ask("explain", show(listed["sve"]["kvm"]))
    assert bits(shell(EACH.format(fp))) == whole["vl_by_zcr_el1_len"]


def test_explain_agrees_with_the_kernels_programs_in_each_guest(
    host: list[str], pyvmm_cmd: list[str], ask: Ask, fp: Path, tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(linux.initramfs(selftests.in_guest(fp)))
    run = [*pyvmm_cmd, "run", *host, "-i", str(initrd), "-m", "256", "-c", "1", "-pquiet"]
    sets = ask("list")["sets"]

    for lengths in sets:
        explained = ask("explain", show(lengths))
        with Session([*run, f"--sve-vls={show(lengths)}", str(linux.image("6.1"))]) as guest:
            guest.wait_for(PROMPT)

            assert selftests.probed(guest.shell("/fp/sve-probe-vls")) == lengths
            assert bits(guest.shell(EACH.format("/fp"))) == explained["vl_by_zcr_el1_len"]
            guest.type(b"poweroff -f\n")
            assert guest.end() == 0

    assert len(sets) == 5  # those of the default CPU
