"""Vector lengths on emulated hosts that have one length, a hole, or no SVE at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S)]

# The host with a hole shows every kind of refusal; the others are in the matrix too.
HOSTS = [
    pytest.param(vls.HOLE, id="a hole"),
    pytest.param(vls.ONE, id="one length", marks=pytest.mark.matrix),
    pytest.param(vls.NONE, id="no SVE", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize("host", HOSTS)
def test_host_gives_every_legal_set_and_refuses_every_other(host: vls.Host, pyvmm: Pyvmm) -> None:
    vls.check_legal(pyvmm, host, "-c", "2")
    vls.check_illegal(pyvmm, host, at_most=3)

    pyvmm("host", "stop", "--host-cpu", host.cpu)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("text", vls.NONSENSE)
def test_wrong_set_is_refused_with_sets_that_would_work(text: str, pyvmm: Pyvmm) -> None:
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


def test_required_sve_exits_with_3_on_a_host_without_it(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start", "--host-cpu", vls.NONE.cpu, timeout=FIRST_S)

    done = pyvmm("run", "hello", "--sve", "--host-cpu", vls.NONE.cpu)

    assert "this host has no SVE" in message(done)
    assert done.returncode == 3


@pytest.mark.usefixtures("emulated")
def test_explain_reads_a_probe_without_a_host(
    pyvmm: Pyvmm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "probe.json"
    listed = pyvmm("sve", "list", "--json", "--probe", str(file))
    here = [pyvmm("sve", "explain", text) for text in ("128,256", "128,512", "1,2")]
    nowhere = tmp_path / "r"
    nowhere.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(nowhere))
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere))

    there = [pyvmm("sve", "explain", text, "--on", str(file)) for text in ("128,256", "128,512")]
    common = pyvmm("sve", "common", str(file), "--json")

    assert listed.returncode == 0, listed.stderr
    document = json.loads(listed.stdout)
    assert document["sve"]["kvm"] == document["sve"]["rdvl"] == list(vls.POWERS)
    assert json.loads(file.read_text())["sve"] == document["sve"]
    assert [done.returncode for done in here] == [0, 1, 2]
    assert [done.returncode for done in there] == [0, 1]
    for asked_here, asked_there in zip(here, there, strict=False):
        assert asked_there.stdout == asked_here.stdout.replace("this host", str(file))
    assert json.loads(common.stdout)["sets"] == document["sets"]
    assert not list(nowhere.glob("pyvmm/*"))


def test_sve_list_is_empty_on_a_host_without_sve(pyvmm: Pyvmm) -> None:
    done = pyvmm("sve", "list", "--json", "--host-cpu", vls.NONE.cpu, timeout=FIRST_S)

    assert json.loads(done.stdout)["sets"] == []
    assert done.returncode == 0
