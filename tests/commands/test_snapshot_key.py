"""The key of a user's snapshots as a command in an emulated host sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.commands._hostopts import own_key
from pyvmm.errors import HostError
from pyvmm.host.share import Needs


@pytest.mark.parametrize("make", [True, False])
def test_key_where_the_host_has_its_own_files_is_refused(
    make: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command would make a key there that ends with the host."""
    link = tmp_path / "state"
    link.symlink_to("/run/pyvmm-of-a-test")
    for home in ("/run/pyvmm-of-a-test", str(link)):
        monkeypatch.setenv("XDG_STATE_HOME", home)

        with pytest.raises(HostError) as caught:
            own_key(make=make)

        assert caught.value.message == (
            f"the emulated host does not see the key of your snapshots, {home}/pyvmm/snapshot-key: "
            "it has its own /run"
        )
        assert "XDG_STATE_HOME" in (caught.value.hint or "")
    assert not Path("/run/pyvmm-of-a-test").exists()


def test_key_is_made_for_a_command_that_saves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = tmp_path / "pyvmm/snapshot-key"

    needs = own_key(make=False)
    is_there = key.exists()
    own_key(make=True)

    assert (needs, is_there, key.exists()) == (Needs(reads=(key,)), False, True)
