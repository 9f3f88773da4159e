from __future__ import annotations

import re
import subprocess
from pathlib import Path

from pyvmm.arm64.unitregs import PsciVersion
from tests.arm64 import psci

# Arm's names that differ in the kernel's header
HEADER_RETURN = {"INVALID_PARAMETERS": "INVALID_PARAMS"}


def header_names(function: psci.Function) -> tuple[str, ...]:
    """Return a function's possible names in linux/psci.h, which contain PSCI's version."""
    name = function.name.removesuffix("_64")
    width = "FN64" if function.name.endswith("_64") else "FN"
    return tuple(f"PSCI_{version}_{width}_{name}" for version in ("0_2", "1_0", "1_1", "1_3"))


def test_functions_and_returns_are_the_kernel_headers(cross_gcc: Path, tmp_path: Path) -> None:
    lines = ["#include <linux/psci.h>"]
    for function in psci.Function:
        for name in header_names(function):
            lines.append(f"#ifdef {name}\nint a[{name} == {function:#x} ? 1 : -1];\n#endif")
    for code in psci.Return:
        name = "PSCI_RET_" + HEADER_RETURN.get(code.name, code.name)
        lines.append(f'_Static_assert({name} == {code.value}, "{name}");')
    source = tmp_path / "psci.c"
    source.write_text("\n".join(lines).replace("int a[", "extern int a["))

    result = subprocess.run(
        [str(cross_gcc), "-fsyntax-only", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.stderr == ""


def test_kernel_header_has_every_function_but_the_newest(cross_gcc: Path) -> None:
    text = subprocess.run(
        [str(cross_gcc), "-E", "-dM", "-include", "linux/psci.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    defined = set(re.findall(r"^#define (\w+)", text, re.MULTILINE))

    missing = {fn.name for fn in psci.Function if not defined.intersection(header_names(fn))}

    assert missing <= {"SYSTEM_OFF2", "SYSTEM_OFF2_64"}  # Linux 6.13


def test_version_shows_major_and_minor() -> None:
    assert str(PsciVersion(0x1_0001)) == "0x10001 (MAJOR=1 MINOR=1)"
    assert psci.V1_1 == 0x1_0001
