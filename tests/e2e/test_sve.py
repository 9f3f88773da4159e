"""Vector lengths on emulated hosts that have one length, a hole, or no SVE at all."""

from __future__ import annotations

import pytest

from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S)]

HOSTS = {"one length": vls.ONE, "a hole": vls.HOLE, "no SVE": vls.NONE}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_host_gives_every_legal_set_and_refuses_every_other(host: vls.Host, pyvmm: Pyvmm) -> None:
    vls.check_legal(pyvmm, host, "-c", "2")
    vls.check_illegal(pyvmm, host, at_most=3)

    pyvmm("host", "stop", "--host-cpu", host.cpu)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("text", vls.NONSENSE)
def test_set_that_makes_no_sense_is_one_message_with_sets_that_would_do(
    text: str, pyvmm: Pyvmm
) -> None:
    done = pyvmm("run", "sve-vls", f"--sve-vls={text}")

    assert vls.NONSENSE[text] in message(done)
    assert done.returncode == 2
    vls.check_hint(done.stderr, vls.Host("", vls.POWERS))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        (("--sve-vls=256,128",), "128 256"),
        (("--sve-max-vl=512",), "128 256 512"),
        (("--sve-max-vl=384",), "128 256"),
        (("--sve",), "128 256 512 1024 2048"),
        (("--sve-vls=128,256,512", "-c", "4"), "128 256 512"),
    ],
)
def test_guest_sees_exactly_the_set(options: tuple[str, ...], lengths: str, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "sve-vls", *options)

    assert done.stdout.splitlines()[-1] == f"SVE vector lengths: {lengths}", done.stderr
    assert (done.stderr, done.returncode) == ("", 0)


def test_sve_required_of_a_host_without_it_is_3(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", "--sve", "--host-cpu", vls.NONE.cpu, timeout=FIRST_S)

    assert "this host has no SVE" in message(done)
    assert done.returncode == 3
