"""The host of one set of settings: found running, or started by one of several commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm import host
from pyvmm.base.dirs import runtime_dir
from pyvmm.errors import HostError
from pyvmm.host import client, instance, running, start
from pyvmm.host.connection import Unreachable
from pyvmm.host.instance import Instance
from pyvmm.host.parts.trees import Tree
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running
from pyvmm.host.settings import LINUX, QEMU, HostSettings
from pyvmm.host.share import Needs
from tests.host.conftest import add_tree

QUIET = Progress(quiet=True)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the starts of a host that boots slowly, with its parts in the cache."""
    add_tree(LINUX, "6.1.176-1", "bookworm")
    add_tree(QEMU, "1:7.2+dfsg-7", "bookworm")
    made: list[str] = []
    up: list[Running] = []

    def begin(
        settings: HostSettings, made_of: list[Tree], sockets: Path, progress: Progress
    ) -> Running:
        made.append(sockets.name)
        time.sleep(0.2)
        up.append(Running(sockets, "id", 1, {}))
        return up[-1]

    monkeypatch.setattr(start, "start", begin)
    monkeypatch.setattr(instance, "running_at", lambda sockets: up[-1] if up else None)
    return made


def test_ensure_returns_a_running_host(starts: list[str]) -> None:
    first = Instance(HostSettings(), QUIET).ensure()
    second = Instance(HostSettings(), QUIET).ensure()

    assert first == second
    assert len(starts) == 1


def test_ensure_starts_one_host_for_two_commands(starts: list[str]) -> None:
    threads = [threading.Thread(target=Instance(HostSettings(), QUIET).ensure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(starts) == 1


def test_instance_is_named_after_the_fetched_versions(
    starts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Instance(HostSettings(kernel="6.12"), QUIET)
    before = wanted.name

    def fetch(settings: HostSettings, progress: Progress) -> None:
        add_tree(LINUX, "6.12.117-1", "trixie")

    monkeypatch.setattr(start, "fetch", fetch)
    wanted.ensure()

    assert starts == [wanted.name]
    assert wanted.name == Instance(HostSettings(kernel="6.12"), QUIET).name
    assert wanted.name != before
    assert wanted.sockets.name == wanted.name


def test_instance_refuses_a_runtime_directory_with_too_long_a_path(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = own / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))

    with pytest.raises(HostError, match="the path is too long for sockets") as caught:
        Instance(HostSettings(), QUIET)

    assert "XDG_RUNTIME_DIR" in (caught.value.hint or "")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that makes commands end in given ways, and reports the events."""

    def install(*results: int | HostError) -> list[str]:
        events: list[str] = []
        left = list(results)
        found = Running(
            runtime_dir() / "host", "id", 1, {"qemu": "7.2", "settings": {"cpu": "max"}}
        )

        def ensure(self: Instance) -> Running:
            events.append("start")
            return found

        def run(where: Running, argv: list[str], *surroundings: object) -> int:
            events.append("run")
            result = left.pop(0)
            if isinstance(result, HostError):
                raise result
            return result

        monkeypatch.setattr(Instance, "ensure", ensure)
        monkeypatch.setattr(client, "run", run)
        monkeypatch.setattr(running, "wait_for_end", lambda gone: events.append("wait"))
        return events

    return install


def test_forward_uses_a_new_host_when_the_old_one_ended_before_the_request(
    outcomes: Callable[..., list[str]],
) -> None:
    events = outcomes(Unreachable("gone"), 7)

    code = host.forward(HostSettings(), ["true"])

    assert code == 7
    assert events == ["start", "run", "wait", "start", "run"]


@pytest.mark.parametrize("error", [Unreachable("gone again"), HostError("no answer")])
def test_forward_tries_two_hosts_at_most(
    error: HostError, outcomes: Callable[..., list[str]]
) -> None:
    outcomes(Unreachable("gone"), error)

    with pytest.raises(type(error), match=error.message):
        host.forward(HostSettings(), ["true"])


def test_forward_never_repeats_a_command_that_had_begun(outcomes: Callable[..., list[str]]) -> None:
    events = outcomes(HostError("ended in the middle"))

    with pytest.raises(HostError, match="in the middle"):
        host.forward(HostSettings(), ["true"])

    assert events == ["start", "run"]


def test_forward_starts_no_host_for_hidden_files(
    outcomes: Callable[..., list[str]],
) -> None:
    events = outcomes()

    with pytest.raises(HostError, match="does not see /etc/image"):
        host.forward(HostSettings(), ["pyvmm", "run"], Needs(reads=(Path("/etc/image"),)))

    assert events == []
