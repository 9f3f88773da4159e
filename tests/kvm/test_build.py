"""pyvmm's tables against the kernel's headers, by the extension's static assertions."""

from __future__ import annotations

import ast
import re
import subprocess
from inspect import getsource
from pathlib import Path

import pytest

from pyvmm.kvm import _build, caps, exits, ioctls, structs, uapi
from pyvmm.kvm.structs import Struct

OLDEST_HEADERS = 6 << 16 | 2 << 8  # NEWER lists names that Linux 6.1 lacks


def compile_asserts(gcc: Path, where: Path) -> str:
    """Compile the assertions; return the compiler's errors."""
    source = where / "asserts.c"
    source.write_text("\n".join((_build.INCLUDES, *_build.static_asserts())))
    result = subprocess.run(
        [str(gcc), "-fsyntax-only", str(source)], capture_output=True, text=True, check=False
    )
    return result.stderr


@pytest.fixture(scope="module")
def header_macros(cross_gcc: Path) -> dict[str, str]:
    """Return every macro of linux/kvm.h."""
    text = subprocess.run(
        [
            *(str(cross_gcc), "-E", "-dM", "-x", "c", "/dev/null"),
            *("-include", "linux/version.h", "-include", "linux/kvm.h"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(re.findall(r"^#define (\w+) (.*)$", text, re.MULTILINE))


def test_tables_agree_with_the_kernels_headers(cross_gcc: Path, tmp_path: Path) -> None:
    assert compile_asserts(cross_gcc, tmp_path) == ""


def test_assertions_cover_every_table() -> None:
    text = "\n".join(_build.static_asserts())

    assert text.count("KVM_CAP_ARM_SVE == 0xaa") == 1
    for item in vars(structs).values():
        if isinstance(item, Struct):
            assert f"sizeof({item.ctype}) == {item.size}" in text
    for item in vars(ioctls).values():
        if isinstance(item, ioctls.Ioctl):
            assert f"{item.name} == {item.number:#x}" in text
    for name, value in _build.constants():
        assert f"{name} == {value:#x}" in text


def test_assertions_find_a_wrong_constant(
    cross_gcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**_build.REGISTERS, "KVM_REG_ARM_TIMER_CNT": 0x6030_0000_0013_DF02}
    monkeypatch.setattr(_build, "REGISTERS", wrong)

    assert "KVM_REG_ARM_TIMER_CNT: pyvmm and the kernel's headers differ" in compile_asserts(
        cross_gcc, tmp_path
    )


def test_assertions_find_a_wrong_member_offset(
    cross_gcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Struct("struct kvm_one_reg", "u64 addr\nu64 id")
    monkeypatch.setattr(structs, "ONE_REG", wrong)

    said = compile_asserts(cross_gcc, tmp_path)

    assert "offset of struct kvm_one_reg.id: pyvmm and" in said
    assert "offset of struct kvm_one_reg.addr: pyvmm and" in said


def test_assertions_find_a_wrong_ioctl_number(
    cross_gcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ioctls, "RUN", ioctls.Ioctl("KVM_RUN", 0x81))

    assert "KVM_RUN: pyvmm and" in compile_asserts(cross_gcc, tmp_path)


def test_newer_names_are_absent_from_old_headers(header_macros: dict[str, str]) -> None:
    if int(header_macros["LINUX_VERSION_CODE"]) >= OLDEST_HEADERS:
        pytest.skip("these headers are not the oldest supported ones")

    assert not _build.NEWER & header_macros.keys()


def test_assertions_cover_every_newer_name() -> None:
    calls = {item.name for item in vars(ioctls).values() if isinstance(item, ioctls.Ioctl)}

    assert {name for name, _ in _build.constants()} | calls >= _build.NEWER


def test_assertions_cover_every_name_in_the_sources_of_the_tables() -> None:
    """Read the names from the syntax trees: what a class's namespace has depends on Python."""
    nodes = [node for module in (uapi, caps) for node in ast.walk(ast.parse(getsource(module)))]
    assigned = [node.targets[0] for node in nodes if isinstance(node, ast.Assign)]
    written = [target.id for target in assigned if isinstance(target, ast.Name)]

    numbers = [name for name, _ in _build.constants() if name not in _build.REGISTERS]

    assert len(written) == len(numbers) > 150
    assert all(any(number.endswith(f"_{name}") for number in numbers) for name in written)


def test_named_returns_a_member_or_the_unknown_number() -> None:
    assert repr(uapi.named(uapi.DeviceType, 5)) == "<DeviceType.ARM_VGIC_V2: 5>"
    assert repr(uapi.named(uapi.DeviceType, 6)) == "6"


def test_caps_list_every_arm64_capability_of_the_headers(header_macros: dict[str, str]) -> None:
    in_header = {name for name in header_macros if name.startswith("KVM_CAP_ARM_")}

    assert in_header <= {name for name, _ in _build.constants()}


def test_union_of_kvm_run_has_the_offset_of_exits(cross_gcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "union.c"
    source.write_text(
        "#include <stddef.h>\n#include <linux/kvm.h>\n"
        f'_Static_assert(offsetof(struct kvm_run, hw) == {exits.UNION_OFFSET}, "");\n'
        "_Static_assert(offsetof(struct kvm_run, kvm_valid_regs)"
        f' == {exits.UNION_OFFSET + exits.UNION_SIZE}, "");\n'
    )

    subprocess.run([str(cross_gcc), "-fsyntax-only", str(source)], check=True)


def test_c_source_compiles_to_an_extension_without_warnings(
    cross_gcc: Path, python_headers: Path, tmp_path: Path
) -> None:
    source = tmp_path / "_kvm.c"

    _build.emit_c_source(source)
    result = subprocess.run(
        [
            *(str(cross_gcc), "-Wall", "-Wextra", "-O2", "-fPIC", "-c"),
            *(
                f"-DPy_LIMITED_API={_build.LIMITED_API}",
                f"-I{python_headers}",
                f"-I{python_headers.parent}",
            ),
            *("-o", str(tmp_path / "_kvm.o"), str(source)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
