"""The emulated host's kernel: a Debian arm64 kernel, and the modules that its root needs."""

from __future__ import annotations

import io
import lzma
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from pyvmm.base.records import Record
from pyvmm.errors import HostError, UsageError
from pyvmm.host.parts import catalogue
from pyvmm.host.parts.debian import Suite
from pyvmm.host.parts.trees import Offer, Tree, upstream
from pyvmm.host.progress import Progress
from pyvmm.host.settings import LINUX, is_path

PARTS: Final = re.compile(r"linux-(image|binary|modules|base)-\d.*-arm64$")
MODULES: Final = (
    "virtio_mmio", "virtio_blk", "virtio_console", "erofs", "9p", "9pnet_virtio",
    "vhost_vsock",  # for guests with --vsock
)  # fmt: skip
# Ends with the version of Debian's package: "#1 SMP Debian 6.1.176-1 (".
BANNER: Final = re.compile(rb"Linux version \d[^\n\0]* Debian (\d\S*) \(")
ARM64_MAGIC: Final = (0x38, b"ARM\x64")  # Source: Documentation/arch/arm64/booting.rst


class Kernel(Record):
    """A bootable Image and its modules."""

    image: Path
    release: str
    root: Path | None

    def modules(self, names: tuple[str, ...] = MODULES) -> dict[str, bytes]:
        """Read modules (name -> bytes of the .ko), dependencies first.

        The default is the modules that the emulated host needs.
        """
        return {} if self.root is None else _closure(self.root, names)


def find(choice: str, progress: Progress) -> Kernel:
    """Return the kernel of a version or Debian suite, or the one at a path.

    A path leads to an uncompressed arm64 Image with built-in drivers, or to a directory with an
    unpacked kernel package.
    """
    if not is_path(choice):
        return _in_tree(tree(choice, progress).path)
    path = Path(choice).resolve()
    if path.is_dir():
        return _in_tree(path)
    with path.open("rb") as file:
        head = file.read(64)
    offset, magic = ARM64_MAGIC
    if head[offset : offset + 4] != magic:
        raise UsageError(
            f"`host.kernel`={choice}: not an uncompressed arm64 Image",
            hint="use Debian's vmlinuz or arch/arm64/boot/Image; unpack a vmlinuz.gz with gunzip",
        )
    return Kernel(path, path.name, None)


def tree(choice: str, progress: Progress) -> Tree:
    """Return the tree of the Debian kernel of a version or a suite."""
    return catalogue.get(LINUX, choice, partial(_unpack, progress=progress), progress)


def _unpack(source: Suite, offer: Offer, into: Path, progress: Progress) -> str:
    """Unpack a kernel package of a suite; return the version in its Image."""
    wanted = source.closure([f"{offer.name}:arm64={offer.package}"])
    parts = [p for p in wanted if PARTS.match(p.name)]
    source.unpack(parts, into, progress)
    _strip(into)
    banner = BANNER.search(_in_tree(into).image.read_bytes())
    return upstream(banner[1].decode()) if banner else offer.version


def _strip(tree: Path) -> None:
    """Remove device trees, drivers and documentation that the emulated host never loads."""
    for useless in [*tree.glob("usr/lib/linux-image-*"), *tree.glob("usr/share")]:
        shutil.rmtree(useless, ignore_errors=True)
    for modules in _module_dirs(tree):
        for unused in ("kernel/sound", "kernel/drivers/gpu", "kernel/drivers/media",
                         "kernel/drivers/net", "kernel/drivers/infiniband",
                         "kernel/drivers/staging", "kernel/drivers/usb"):  # fmt: skip
            shutil.rmtree(modules / unused, ignore_errors=True)


def _module_dirs(tree: Path) -> list[Path]:
    return [
        d for base in ("lib/modules", "usr/lib/modules") for d in sorted(tree.glob(f"{base}/*"))
    ]


def _in_tree(tree: Path) -> Kernel:
    """Find the Image and the modules in an unpacked kernel package."""
    directories = _module_dirs(tree)
    images = [*tree.glob("boot/vmlinuz-*"), *(d / "vmlinuz" for d in directories)]
    image = next((i for i in images if i.is_file()), None)
    if image is None or not directories:
        raise HostError(
            f"{tree} holds no kernel with its modules",
            hint="unpack a kernel package there with dpkg-deb -x: boot/vmlinuz-*, lib/modules/*",
        )
    return Kernel(image, directories[0].name, directories[0])


def _closure(root: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return the named modules of a kernel and those they depend on, dependencies first."""
    files = {_module_name(file): file for file in root.glob("kernel/**/*.ko*")}
    builtin = root / "modules.builtin"
    lines = builtin.read_text().split() if builtin.exists() else []
    seen = {_module_name(Path(line)) for line in lines}
    found: dict[str, bytes] = {}

    def visit(name: str, *, optional: bool = False) -> None:
        if name in seen:
            return
        seen.add(name)
        file = files.get(name) or files.get(f"{name}_generic")
        if file is None:
            if optional:
                return
            raise HostError(f"the kernel has no module {name}")
        content = _read_module(file)
        for dependency, soft in _dependencies(content, file):
            visit(dependency, optional=soft)
        found[_module_name(file)] = content

    for name in names:
        visit(name)
    return found


def _module_name(file: Path) -> str:
    return file.name.split(".ko")[0].replace("-", "_")


def _read_module(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(content)
    if file.suffix == ".ko":
        return content
    raise HostError(f"{file}: pyvmm reads .ko and .ko.xz modules only")


def _dependencies(module: bytes, file: Path) -> Iterator[tuple[str, bool]]:
    """Yield a module's dependencies from its .modinfo, and whether each one is optional."""
    try:
        section = ELFFile(io.BytesIO(module)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise HostError(f"{file}: {error}") from error
    for entry in section.data().split(b"\0") if section else ():
        key, _, value = entry.decode(errors="replace").partition("=")
        if key == "depends" and value:
            yield from ((name.replace("-", "_"), False) for name in value.split(","))
        elif key == "softdep" and value.startswith("pre:"):
            before = value.removeprefix("pre:").split("post:")[0]
            # crypto-NAME is an alias of the modules with that algorithm
            names = (name.removeprefix("crypto-") for name in before.split())
            yield from ((name.replace("-", "_"), True) for name in names)
