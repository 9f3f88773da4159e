"""Building kernel modules, with the headers of a package."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host.parts import kmodule
from pyvmm.host.progress import Progress

QUIET = Progress(quiet=True)


def test_kernel_without_known_headers_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "Image"
    image.touch()

    with pytest.raises(HostError, match="needs the headers"):
        kmodule.build(str(image), tmp_path / "x.c", QUIET)


def test_absolute_paths_of_a_headers_package_are_moved_into_its_tree(tmp_path: Path) -> None:
    own, common = (tmp_path / f"usr/src/linux-headers-{n}" for n in ("6.9-arm64", "6.9-common"))
    for directory in (own, common):
        directory.mkdir(parents=True)
    (own / "Makefile").write_text("include /usr/src/linux-headers-6.9-common/Makefile\n")
    (common / "Makefile").write_text("# the kernel's own: /usr/src/\n" + "#" * 5000)

    kmodule._arrange(tmp_path, Path("/home"))

    text = (own / "Makefile").read_text()
    assert text == "include /home/usr/src/linux-headers-6.9-common/Makefile\n"
    assert "# the kernel's own: /usr/src/\n" in (common / "Makefile").read_text()


def test_build_reports_the_compilers_error(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "Makefile").write_text("modules:\n\t@echo 'x.c:1: no good' >&2; exit 1\n")
    monkeypatch.setattr(kmodule, "_cross_tools", lambda directory, progress: [])
    source = tmp_path / "x.c"
    source.touch()

    with pytest.raises(HostError, match=r"make x\.c:\n +x\.c:1: no good\n"):
        kmodule._built(headers, source, "6.9", QUIET)


def test_module_is_built_once(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    recipe = "modules:\n\t@echo built >> $(M)/../../count; cp $(M)/x.c $(M)/x.ko\n"
    (headers / "Makefile").write_text(recipe)
    monkeypatch.setattr(kmodule, "_cross_tools", lambda directory, progress: [])
    source = tmp_path / "x.c"
    source.write_text("text")

    first = kmodule._built(headers, source, "6.9", QUIET)
    again = kmodule._built(headers, source, "6.9", QUIET)

    assert first == again
    assert first.read_text() == "text"
    assert sorted(path.name for path in first.parent.iterdir()) == ["x.ko"]
    assert (first.parent.parent / "count").read_text() == "built\n"
