"""The import directions between rooms, proved by walking every module's syntax tree.

An import inside a function counts like any other: it only happens later.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyvmm"

# The rooms of the house, lowest first: a room imports only from itself and the rooms before it.
ROOMS = (
    # knows nothing of VMs
    "errors", "layout", "base", "report",
    # a machine's description, guest memory, terminals: no KVM
    "config", "memory", "terminal", "sandbox",
    # no KVM
    "arm64", "cpumodel", "devices", "boot",
    # nothing but KVM
    "kvm",
    # a Config becomes a machine, and runs
    "machine", "snapshot", "debugger", "control", "svecheck",
    # outside and inside the emulated host
    "host", "host.inside",
    "repro",
    # one guest on many machines
    "sweep",
    # the command line
    "cli", "commands", "__main__",
)  # fmt: skip

# Rooms and modules that a room must not reach either, not even through other rooms.
APART = {
    "base": {"layout"},
    "arm64": {"kvm", "config"},
    "devices": {"kvm"},
    "boot": {"kvm"},
    "host": {"kvm"},
    "host.inside": {"kvm"},
    "kvm": {"base.units", "config", "arm64", "devices", "boot"},
    "svecheck": {"machine", "control", "debugger"},
}

# Rooms that no other room imports: the host starts them as programs of their own.
PROGRAMS = {"host.inside"}

# Packages that only some rooms may import.
RESERVED = {
    "click": {"cli", "commands"},
    "rich": {"cli", "commands"},
    "cffi": {"kvm"},
    "qemu": {"host"},
    "distributed": {"sweep"},
}

# pyvmm/__init__.py is the library's face: it names the public classes, and imports them on use.
FACE = "pyvmm"


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), path)
    return found


def imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules that a module imports, `from package import module` included."""
    names = set()
    for node in imports(modules()[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in modules() else str(node.module))
    return frozenset(names)


@cache
def reached(module: str) -> frozenset[str]:
    """Return the modules of pyvmm that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imported(waiting.pop()) & modules().keys() - {FACE} - found:
            found.add(name)
            waiting.append(name)
    return frozenset(found)


def room(module: str) -> str:
    """Return the innermost room that a module is in."""
    parts = module.split(".")[1:]
    nested = ".".join(parts[:2])
    return nested if nested in ROOMS else parts[0]


MODULES = sorted(modules().keys() - {FACE})


def test_contributing_draws_every_room() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text.partition("## Layers")[2].split("```")[1]
    drawn = {word.rstrip("/").replace("/", ".") for word in picture.split()}

    assert not set(ROOMS) - drawn


@pytest.mark.parametrize("module", MODULES)
def test_module_is_in_a_known_room(module: str) -> None:
    assert room(module) in ROOMS


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    here = ROOMS.index(room(module))

    up = {name for name in imported(module) & set(MODULES) if ROOMS.index(room(name)) > here}

    assert not up


@pytest.mark.parametrize("module", MODULES)
def test_separate_rooms_do_not_reach_each_other(module: str) -> None:
    apart = APART.get(room(module), set())

    assert not {
        name
        for name in reached(module)
        if room(name) in apart or name.removeprefix(f"{FACE}.") in apart
    }


@pytest.mark.parametrize("module", MODULES)
def test_programs_are_imported_by_no_other_room(module: str) -> None:
    programs = {name for name in imported(module) & set(MODULES) if room(name) in PROGRAMS}

    assert not {name for name in programs if room(name) != room(module)}


@pytest.mark.parametrize("room_", ROOMS)
def test_room_has_modules(room_: str) -> None:
    assert [module for module in MODULES if room(module) == room_]


@pytest.mark.parametrize("module", MODULES)
def test_module_is_in_no_import_cycle(module: str) -> None:
    assert module not in reached(module)


@pytest.mark.parametrize("module", MODULES)
def test_reserved_packages_are_imported_only_where_they_belong(module: str) -> None:
    packages = {name.split(".")[0] for name in imported(module)}

    misplaced = {name for name in packages if room(module) not in RESERVED.get(name, ROOMS)}

    assert not misplaced


@pytest.mark.parametrize("module", [FACE, *MODULES])
def test_imports_are_absolute_and_by_name(module: str) -> None:
    for node in imports(modules()[module]):
        assert not (isinstance(node, ast.ImportFrom) and node.level), ast.unparse(node)
        assert "*" not in {alias.name for alias in node.names}, ast.unparse(node)


def test_importing_pyvmm_imports_no_module_of_it() -> None:
    at_once = [
        node for node in modules()[FACE].body if isinstance(node, ast.Import | ast.ImportFrom)
    ]

    assert not [node for node in at_once if "pyvmm" in ast.unparse(node)]
