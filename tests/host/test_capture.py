"""The output of commands inside an emulated host."""

from __future__ import annotations

import pytest

from pyvmm.errors import HostError
from pyvmm.host.capture import capture
from pyvmm.host.running import Running
from tests.host.conftest import Channel


@pytest.fixture
def running(channel: Channel) -> Running:
    facts = {"qemu": "7.2", "settings": {"cpu": "max"}}
    return Running(channel.directory, "start", 0, facts)


def test_capture_passes_input_and_returns_output(running: Running) -> None:
    data = bytes(range(256)) * 400

    assert capture(running, ["cat"], data) == data


def test_capture_returns_output_larger_than_every_buffer(running: Running) -> None:
    printed = capture(running, ["sh", "-c", "yes 0123456 | head -c 8000000"], b"")

    assert printed == b"0123456\n" * 1_000_000


def test_capture_reports_a_failed_commands_stderr(running: Running) -> None:
    with pytest.raises(HostError, match=r"\(3\): what went wrong"):
        capture(running, ["sh", "-c", "echo what went wrong >&2; exit 3"], b"")


def test_capture_leaves_stderr_out_of_the_output(running: Running) -> None:
    assert capture(running, ["sh", "-c", "echo x >&2; echo y"], b"") == b"y\n"


def test_capture_reports_no_answer_when_a_running_command_is_silent(running: Running) -> None:
    with pytest.raises(HostError, match="the emulated host does not answer"):
        capture(running, ["sleep", "20"], b"", timeout_s=0.2)
