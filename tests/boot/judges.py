"""Independent readers of device trees: dtc, and libfdt by ctypes."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

# A tree as libfdt reads it: properties are bytes, children are trees.
Tree = dict[str, "bytes | Tree"]


def run_dtc(dtc: Path, blob: bytes, output: str = "dts") -> tuple[bytes, str]:
    """Return dtc's output for a blob, and its warnings."""
    done = subprocess.run(
        [dtc, "-I", "dtb", "-O", output], input=blob, capture_output=True, check=True
    )
    return done.stdout, done.stderr.decode()


def library_of(program: Path, name: str) -> str:
    """Return a program's library: the system's, or one in a directory that its wrapper names."""
    content = program.read_bytes()
    if content.startswith(b"#!"):
        for directory in re.findall(r"/[^\s:]+", content.decode()):
            library = Path(directory) / name
            if library.exists():
                return str(library)
    return name


class Libfdt:
    """The functions of libfdt that check and read a blob."""

    def __init__(self, dtc: Path) -> None:
        self.library = ctypes.CDLL(library_of(dtc, "libfdt.so.1"))
        for name in ("fdt_get_name", "fdt_getprop_by_offset"):
            getattr(self.library, name).restype = ctypes.c_void_p

    def check(self, blob: bytes) -> int:
        """Return 0 or the error of fdt_check_full()."""
        error: int = self.library.fdt_check_full(blob, len(blob))
        return error

    def reservations(self, blob: bytes) -> list[tuple[int, int]]:
        """Return the memory reservations."""
        found = []
        for index in range(self.library.fdt_num_mem_rsv(blob)):
            address, size = ctypes.c_uint64(), ctypes.c_uint64()
            self.library.fdt_get_mem_rsv(blob, index, ctypes.byref(address), ctypes.byref(size))
            found.append((address.value, size.value))
        return found

    def tree(self, blob: bytes, node: int = 0) -> Tree:
        """Return all properties and children of a node."""
        tree: Tree = {}
        data = ctypes.create_string_buffer(blob, len(blob))
        prop = self.library.fdt_first_property_offset(data, node)
        while prop >= 0:
            name, length = ctypes.c_char_p(), ctypes.c_int()
            value = self.library.fdt_getprop_by_offset(
                data, prop, ctypes.byref(name), ctypes.byref(length)
            )
            assert name.value is not None
            tree[name.value.decode()] = ctypes.string_at(value, length.value)
            prop = self.library.fdt_next_property_offset(data, prop)
        child = self.library.fdt_first_subnode(data, node)
        while child >= 0:
            address = self.library.fdt_get_name(data, child, None)
            tree[ctypes.string_at(address).decode()] = self.tree(blob, child)
            child = self.library.fdt_next_subnode(data, child)
        return tree
