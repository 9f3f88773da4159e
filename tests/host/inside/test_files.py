"""The user's files at their own paths in the emulated host."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.host.inside import files


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Record the mounts of a user's tree in tmp_path/user."""
    made: list[tuple[str, Path]] = []
    (tmp_path / "user").mkdir()
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(files, "USER_ROOT", tmp_path / "user")
    monkeypatch.setattr(files, "_mount", lambda what, where, *_: made.append((what, where)))
    return made


def test_top_level_is_bound_except_for_the_hosts_own_directories(
    tmp_path: Path, mounts: list[tuple[str, Path]]
) -> None:
    user, root = tmp_path / "user", tmp_path / "root"
    for name in ("home", "etc", "usr", "run"):
        (user / name).mkdir()
    (user / "lib").symlink_to("usr/lib")

    files.show_top_level(root)

    assert mounts == [(f"{user}/home", root / "home")]
    assert [p.name for p in root.iterdir()] == ["home"]


def test_top_level_files_and_links_become_links(
    tmp_path: Path, mounts: list[tuple[str, Path]]
) -> None:
    user, root = tmp_path / "user", tmp_path / "root"
    (user / "swap.img").write_text("data")
    (user / "mnt").mkdir()
    (user / "mnt/file").write_text("linked")
    (user / "data").symlink_to("mnt")
    (user / "broken").symlink_to("nowhere")

    files.show_top_level(root)

    assert (root / "swap.img").read_text() == "data"
    assert (root / "data/file").read_text() == "linked"
    assert (root / "broken").is_symlink()
    assert [where.name for _, where in mounts] == ["mnt"]


def test_tree_of_a_command_is_bound_and_the_trees_of_others_are_covered(
    tmp_path: Path, mounts: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, root = tmp_path / "user", tmp_path / "root"
    (user / "mine/home").mkdir(parents=True)
    (user / "mine/etc").mkdir()
    (user / "mine/usr/local").mkdir(parents=True)
    (user / "mine/swap.img").touch()
    (user / "mine/data").symlink_to("/home/data")
    (user / "other/srv").mkdir(parents=True)
    monkeypatch.setattr(files, "_unshare_mounts", lambda: mounts.append(("own", root)))

    files.show_tree("mine", root)

    tree = user / "mine"
    assert (mounts[0], mounts[-1]) == (("own", root), ("none", user))
    assert sorted(mounts[1:-1]) == [
        (f"{tree}/home", root / "home"),
        (f"{tree}/swap.img", root / "swap.img"),
        (f"{tree}/usr/local", Path("/usr/local")),
    ]
    assert (root / "data").readlink() == Path("/home/data")


def test_tree_without_usr_is_bound(
    tmp_path: Path, mounts: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user/mine/home").mkdir(parents=True)
    monkeypatch.setattr(files, "_unshare_mounts", lambda: None)

    files.show_tree("mine", tmp_path / "root")

    assert [where.name for _, where in mounts] == ["home", "user"]


def test_command_without_a_tree_sees_only_the_cover(
    tmp_path: Path, mounts: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_unshare_mounts", lambda: None)

    files.show_tree("-", tmp_path / "root")

    assert mounts == [("none", tmp_path / "user")]


def test_new_top_level_entries_are_bound_later(
    tmp_path: Path, mounts: list[tuple[str, Path]]
) -> None:
    user, root = tmp_path / "user", tmp_path / "root"
    (user / "home").mkdir()
    (user / "broken").symlink_to("nowhere")
    files.show_top_level(root)

    (user / "new").mkdir()
    files.show_top_level(root)

    assert [where.name for _, where in mounts] == ["home", "new"]
