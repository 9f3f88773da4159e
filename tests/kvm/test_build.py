"""pyvmm's tables against the kernel's headers, by the extension's static assertions."""

from __future__ import annotations

import re
import subprocess
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
    monkeypatch.setattr(ioctls, "RUN", ioctls.io("KVM_RUN", 0x81))

    assert "KVM_RUN: pyvmm and" in compile_asserts(cross_gcc, tmp_path)


def test_newer_names_are_absent_from_old_headers(header_macros: dict[str, str]) -> None:
    if int(header_macros["LINUX_VERSION_CODE"]) >= OLDEST_HEADERS:
        pytest.skip("these headers are not the oldest supported ones")

    assert not _build.newer() & header_macros.keys()


def test_assertions_cover_every_newer_name() -> None:
    assert _build.newer() <= {name for name, _ in _build.constants()}


def test_each_table_of_numbers_has_a_prefix() -> None:
    classes = {item for item in vars(uapi).values() if isinstance(item, type)}

    assert {cls for cls in classes if cls.__module__ == uapi.__name__} == set(uapi.C_PREFIX)


def test_caps_list_every_arm64_capability_of_the_headers(header_macros: dict[str, str]) -> None:
    in_header = {name for name in header_macros if name.startswith("KVM_CAP_ARM_")}

    assert in_header <= {caps.C_PREFIX + name for name in caps.Cap.members}


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
