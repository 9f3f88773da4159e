"""The initramfs of an emulated host: init.sh, busybox, kernel modules, and pyvmm compiled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from pyvmm.host.parts import extension, payload, root
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.parts.kernel import Kernel
from pyvmm.host.progress import Progress

INIT: Final = payload.PACKAGE / "host/inside/init.sh"
LIBRARY: Final = "payload/lib"  # init.sh moves it to /run/pyvmm/lib


def write(path: Path, kernel: Kernel, progress: Progress) -> None:
    """Write the initramfs; temporary files lie beside it."""
    modules = kernel.modules()
    with path.open("wb") as file:
        archive = CpioWriter(file)
        archive.device("dev/console", 5, 1)
        archive.file("init", INIT.read_bytes(), 0o755)
        archive.file("busybox", root.busybox(progress).read_bytes(), 0o755)
        archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
        for name, content in modules.items():
            archive.file(f"modules/{name}.ko", content)
        _write_payload(archive, path.parent, progress)
        archive.close()


def _write_payload(archive: CpioWriter, place: Path, progress: Progress) -> None:
    """Compile pyvmm and add it."""
    built = extension.build(progress)
    with tempfile.TemporaryDirectory(prefix="payload-", dir=place) as scratch:
        copy = Path(scratch)
        for path in payload.files():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes((payload.PACKAGE / path).read_bytes())
        root.compile_python(copy, "/run/pyvmm/lib/pyvmm", progress)
        for path in sorted(p for p in copy.rglob("*") if p.is_file()):
            archive.file(f"{LIBRARY}/pyvmm/{path.relative_to(copy)}", path.read_bytes())
    archive.file(f"{LIBRARY}/pyvmm/kvm/{payload.EXTENSION}", built.read_bytes(), 0o755)
