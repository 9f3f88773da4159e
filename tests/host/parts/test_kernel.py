"""The emulated host's kernel, and the modules of its root in the order to load them."""

from __future__ import annotations

import lzma
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import pytest

from pyvmm.errors import HostError, UsageError
from pyvmm.host.parts import kernel
from pyvmm.host.parts.debian import Package, Suite
from pyvmm.host.parts.kernel import Kernel
from pyvmm.host.parts.trees import PACKAGES, Offer
from pyvmm.host.progress import Progress
from pyvmm.host.settings import LINUX
from tests.host.conftest import add_tree, list_packages

QUIET = Progress(quiet=True)
IMAGE = bytes(0x38) + b"ARM\x64" + bytes(64)

Module = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make an unpacked kernel package; its modules are in root(tree)."""
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.9").write_bytes(IMAGE)
    root(tmp_path).mkdir(parents=True)
    return tmp_path


def root(tree: Path) -> Path:
    return tree / "lib/modules/6.9"


@pytest.fixture
def module(tree: Path, cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Module:
    """Return a function that adds a module with entries in .modinfo."""
    scratch = tmp_path_factory.mktemp("modules")

    def add(path: str, *modinfo: str, section: str = ".modinfo") -> None:
        source, target = scratch / "module.s", root(tree) / "kernel" / path
        strings = "".join(f'.asciz "{entry}"\n' for entry in modinfo)
        source.write_text(f'.section {section},"a"\n{strings}')
        target.parent.mkdir(parents=True, exist_ok=True)
        plain = target.with_suffix("") if target.suffix == ".xz" else target
        subprocess.run([str(cross_gcc), "-c", "-o", str(plain), str(source)], check=True)
        if target.suffix == ".xz":
            target.write_bytes(lzma.compress(plain.read_bytes()))
            plain.unlink()

    return add


def closure(tree: Path, *names: str) -> list[str]:
    return list(kernel._closure(root(tree), names))


def test_modules_are_in_order_of_dependencies_once_each(tree: Path, module: Module) -> None:
    module("fs/9p/9p.ko", "license=GPL", "depends=9pnet,netfs")
    module("net/9p/9pnet_virtio.ko", "depends=9pnet")
    module("net/9p/9pnet.ko", "depends=")
    module("fs/netfs/netfs.ko", "depends=fscache")
    module("fs/fscache/fscache.ko")

    assert closure(tree, "9p", "9pnet_virtio") == [
        "9pnet", "fscache", "netfs", "9p", "9pnet_virtio"
    ]  # fmt: skip


def test_soft_dependencies_come_first_if_they_exist(tree: Path, module: Module) -> None:
    module("fs/erofs/erofs.ko", "depends=libcrc32c", "softdep=post: never")
    module("lib/libcrc32c.ko", "softdep=pre: crc32c nowhere post: later")
    module("crypto/crc32c_generic.ko")
    module("lib/later.ko")
    module("lib/never.ko")

    assert closure(tree, "erofs") == ["crc32c_generic", "libcrc32c", "erofs"]


def test_module_names_treat_dashes_as_underscores(tree: Path, module: Module) -> None:
    module("drivers/virtio-mmio.ko", "depends=virtio-ring")
    module("drivers/virtio_ring.ko")

    assert closure(tree, "virtio_mmio") == ["virtio_ring", "virtio_mmio"]


def test_built_in_modules_are_omitted(tree: Path, module: Module) -> None:
    module("fs/erofs.ko", "depends=libcrc32c")
    (root(tree) / "modules.builtin").write_text(
        "kernel/lib/libcrc32c.ko\nkernel/drivers/virtio/virtio-mmio.ko\n"
    )

    assert closure(tree, "virtio_mmio", "erofs") == ["erofs"]


def test_modules_that_depend_on_each_other_occur_once(tree: Path, module: Module) -> None:
    module("a.ko", "softdep=pre: b")
    module("b.ko", "softdep=pre: a")

    assert set(closure(tree, "a")) == {"a", "b"}


def test_compressed_module_is_decompressed(tree: Path, module: Module) -> None:
    module("one.ko.xz", "depends=two")
    module("two.ko.xz")

    modules = kernel._closure(root(tree), ("one",))

    assert list(modules) == ["two", "one"]
    assert all(content.startswith(b"\x7fELF") for content in modules.values())


def test_module_without_modinfo_has_no_dependencies(tree: Path, module: Module) -> None:
    module("one.ko", "depends=two", section=".other")

    assert closure(tree, "one") == ["one"]


def test_missing_module_is_named(tree: Path, module: Module) -> None:
    module("one.ko", "depends=nowhere")

    with pytest.raises(HostError, match="the kernel has no module nowhere"):
        closure(tree, "one")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("one.ko", b"not ELF", "Magic number does not match"),
        ("one.ko.zst", b"", r"reads \.ko and \.ko\.xz modules only"),
    ],
)
def test_module_that_cannot_be_read_is_named(
    name: str, content: bytes, words: str, tree: Path
) -> None:
    (root(tree) / "kernel").mkdir()
    (root(tree) / "kernel" / name).write_bytes(content)

    with pytest.raises(HostError, match=f"{name}: .*{words}"):
        closure(tree, "one")


def test_unpacked_package_is_a_kernel_with_its_modules(tree: Path) -> None:
    found = kernel.find(str(tree), QUIET)

    assert found == Kernel(tree / "boot/vmlinuz-6.9", "6.9", root(tree))


def test_unpacked_package_may_have_its_image_beside_the_modules(tmp_path: Path) -> None:
    modules = tmp_path / "usr/lib/modules/7.2-arm64"
    modules.mkdir(parents=True)
    (modules / "vmlinuz").write_bytes(IMAGE)

    assert kernel.find(str(tmp_path), QUIET) == Kernel(modules / "vmlinuz", "7.2-arm64", modules)


def test_image_at_a_path_has_no_modules(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(IMAGE)

    found = kernel.find(str(path), QUIET)

    assert found.image == path
    assert found.modules() == {}


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x1f\x8b" + bytes(100), b"\x7fELF" + bytes(99)])
def test_file_that_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=f"`host.kernel`={path}: not an uncompressed arm64 Image"):
        kernel.find(str(path), QUIET)


def test_directory_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="holds no kernel with its modules"):
        kernel.find(str(tmp_path), QUIET)


class FakeSuite(Suite):
    """A suite whose kernel's Image has the version 7.3.1."""

    banner = b"Linux version 7.3-arm64 (x@debian.org) (gcc (Debian 15.1-2) 15.1) #1 SMP "
    asked: ClassVar[list[str]] = []

    def closure(self, names: object) -> list[Package]:
        assert isinstance(names, list)
        self.asked.extend(names)
        found = ("linux-base", "linux-image-7.3-arm64", "linux-modules-7.3-arm64")
        return [Package(name, "arm64", "7.3.1-1", 1) for name in found]

    def unpack(self, packages: Iterable[Package], into: Path, progress: Progress) -> None:
        list_packages(packages, into)
        root(into).mkdir(parents=True)
        (into / "boot").mkdir()
        said = IMAGE + self.banner + b"Debian 7.3.1-1 (2026-11-28)\n"
        (into / "boot/vmlinuz-6.9").write_bytes(said)


def test_unpacked_kernel_has_the_version_in_its_image(tmp_path: Path) -> None:
    offer = Offer("linux-image-7.3-arm64", "7.2.1-1")

    version = kernel._unpack(FakeSuite("sid"), offer, tmp_path, QUIET)

    assert version == "7.3.1"
    assert FakeSuite.asked == ["linux-image-7.3-arm64:arm64=7.2.1-1"]
    assert (tmp_path / PACKAGES).read_text() == (
        "linux-image-7.3-arm64:arm64=7.3.1-1\nlinux-modules-7.3-arm64:arm64=7.3.1-1\n"
    )


def test_unpacked_kernel_without_a_version_has_that_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSuite, "banner", b"compressed")

    assert kernel._unpack(FakeSuite("sid"), Offer("x", "7.2.1-1"), tmp_path, QUIET) == "7.2.1"


def test_kernel_in_the_cache_is_found_by_its_version() -> None:
    path = add_tree(LINUX, "6.1.176-1", "bookworm")
    (path / "boot").mkdir()
    (path / "boot/vmlinuz-6.9").write_bytes(IMAGE)
    root(path).mkdir(parents=True)

    assert kernel.find("6.1", QUIET).root == root(path)
