"""An escape from a guest, in a vCPU's thread of a confined run, on a real KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.commands._attached import Extras, run_attached
from pyvmm.commands.run import GUESTS
from pyvmm.config import Config
from pyvmm.devices.exit import ExitRegister
from tests.sandbox.escape import in_child, refused

pytestmark = pytest.mark.kvm

DENIED = ("Operation not permitted", "Permission denied")


@pytest.mark.parametrize("sandbox", [True, False])
def test_vcpu_thread_is_refused_everything(
    sandbox: bool, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "id"
    secret.write_bytes(b"secret")
    found: dict[str, str | None] = {}
    write = ExitRegister.mmio_write

    def escape(device: ExitRegister, offset: int, length: int, value: int) -> None:
        if sandbox:
            found.update(refused(secret))
        else:
            found["read"] = str(secret.read_bytes())
        write(device, offset, length, value)

    monkeypatch.setattr(ExitRegister, "mmio_write", escape)
    config = Config(image=GUESTS / "exit", vcpus=1, params="exit=7", timeout_s=60)

    def run() -> object:
        return run_attached(config, Extras(sandbox=sandbox)), found

    code, found = in_child(run)

    assert code == 7
    if sandbox:
        assert {name for name, error in found.items() if error not in DENIED} == set()
        assert secret.read_bytes() == b"secret"
    else:
        assert found == {"read": "b'secret'"}
