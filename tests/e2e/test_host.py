"""`pyvmm host`: start, show, enter, stop and remove hosts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from pyvmm.base.dirs import cache_dir
from pyvmm.host.capture import capture
from pyvmm.host.client import OVERFLOW_GID
from pyvmm.host.running import all_running
from pyvmm.host.settings import QEMU_SUITES, SUITES
from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm, is_alive, message, wait_for
from tests.tty import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

OTHER = ("--host-cpu", "max,sve-max-vq=1")


def test_start_describes_the_host(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")

    done = pyvmm("host", "start")

    assert (done.stdout, done.returncode) == ("", 0)
    assert done.stderr.startswith("emulated host 6.1-7.2-")
    assert done.stderr.endswith(": was running\n")


def test_status_as_json_is_complete(pyvmm: Pyvmm) -> None:
    document = json.loads(pyvmm("host", "status", "--json").stdout)

    assert document["schema"] == 1
    assert Path(document["cache"]).is_dir()
    (running,) = (host for host in document["hosts"] if host["running"])
    assert running["name"].startswith("6.1-7.2-")
    assert running["kernel"].startswith("6.1.")
    assert running["qemu"].startswith("7.2")
    assert running["cpu"].startswith("max,sve2048=on")
    assert running["memory_bytes"] % (1 << 20) == 0
    assert Path(running["saved"]).is_dir()
    assert 10 << 20 < running["saved_bytes"] < 2 << 30
    assert is_alive(running["pid"])
    assert running["sessions"] == 0
    assert running["uptime_s"] >= 0
    assert running["rss_bytes"] > 10 << 20
    idle = [host for host in document["hosts"] if not host["running"]]
    assert all(host["saved"] and "pid" not in host for host in idle)


def test_status_counts_the_commands_that_run(pyvmm: Pyvmm) -> None:
    with pyvmm.start("host", "exec", "--", "sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        process.stdout.readline()

        assert pyvmm.hosts()[0]["sessions"] == 1

        process.terminate()
    assert pyvmm.hosts()[0]["sessions"] == 0


def test_status_prints_a_line_for_each_host(pyvmm: Pyvmm) -> None:
    done = pyvmm("host", "status")

    count = len(json.loads(pyvmm("host", "status", "--json").stdout)["hosts"])
    assert len(done.stdout.splitlines()) == count
    assert "running, process " in done.stdout


def test_list_has_the_running_hosts_kernel_and_qemu_in_the_cache(pyvmm: Pyvmm) -> None:
    (running,) = pyvmm.hosts()

    document = json.loads(pyvmm("host", "list", "--json").stdout)

    for kind, version in (("kernels", "6.1."), ("qemus", "7.2")):
        (row,) = (row for row in document[kind] if row["suite"] == "bookworm")
        used = [tree for tree in row["cached"] if running["name"] in tree["hosts"]]
        assert [tree["version"].startswith(version) for tree in used] == [True]
        assert Path(used[0]["path"]).is_dir()
        assert used[0]["bytes"] > 10 << 20


def test_list_prints_a_line_for_each_suite(pyvmm: Pyvmm) -> None:
    done = pyvmm("host", "list")

    assert done.returncode == 0
    for suite in SUITES:
        assert sum(f" {suite} " in line for line in done.stdout.splitlines()) == 2
    assert done.stderr == ""


def test_host_keeps_a_vm_open_across_its_save(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    (running,) = all_running()

    script = "for fd in /proc/1/fd/*; do readlink $fd; done; true"
    said = capture(running, ["sh", "-c", script], b"", as_root=True)

    assert said.split().count(b"anon_inode:kvm-vm") == 1


def _seccomp(process: int) -> str:
    """Return the process's seccomp mode: 2 is a filter.  Source: proc_pid_status(5)."""
    (mode,) = re.findall(r"^Seccomp:\s+(\d)$", Path(f"/proc/{process}/status").read_text(), re.M)
    return str(mode)


def test_qemu_has_a_system_call_filter_in_every_thread(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    (host,) = pyvmm.hosts()

    threads = Path(f"/proc/{host['pid']}/task").iterdir()

    assert host["sandbox"] is True
    assert {_seccomp(int(thread.name)) for thread in threads} == {"2"}


@pytest.mark.matrix
@pytest.mark.parametrize("version", QEMU_SUITES)
def test_every_qemu_boots_saves_and_starts_in_its_sandbox(version: str, pyvmm: Pyvmm) -> None:
    where = ("--host-qemu", version)
    pyvmm("host", "rm", *where)

    done = pyvmm("run", "exit", "-p", "exit=8", *where, timeout=FIRST_S)
    hosts = [host for host in pyvmm.hosts() if host["qemu"].startswith(version)]
    pyvmm("host", "stop", *where)
    again = pyvmm("run", "exit", "-p", "exit=9", *where)
    modes = [_seccomp(host["pid"]) for host in pyvmm.hosts() if host["qemu"].startswith(version)]
    pyvmm("host", "rm", *where)

    assert "booting the emulated host once" in done.stderr
    assert [host["sandbox"] for host in hosts] == [True]
    assert (done.returncode, again.returncode, modes) == (8, 9, ["2"])


def test_exec_runs_as_the_user_in_the_current_directory(pyvmm: Pyvmm, tmp_path: Path) -> None:
    script = 'id -u; id -g; pwd; umask; uname -m; echo "$HOME $TERM $PYVMM_X:$SECRET"; echo >made'
    theirs = {"HOME": "/home/me", "TERM": "vt52", "PYVMM_X": "x", "SECRET": "s"}
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache_dir().parent), **theirs}

    done = pyvmm(
        "host", "exec", "--", "sh", "-c", script, cwd=tmp_path, umask=0o027, env=environment
    )

    assert done.stdout.splitlines() == [
        str(os.getuid()), str(os.getgid()), str(tmp_path), "0027", "aarch64", "/home/me vt52 x:"
    ]  # fmt: skip
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "made").stat().st_uid == os.getuid()


def test_exec_has_the_users_groups_and_kvm(pyvmm: Pyvmm) -> None:
    done = pyvmm("host", "exec", "--", "sh", "-c", "id -G; ls -l /dev/kvm")

    groups, device = done.stdout.splitlines()
    # A confined QEMU shows another user than root the files of other groups with OVERFLOW_GID.
    assert set(map(int, groups.split())) - {OVERFLOW_GID} == {os.getgid(), *os.getgroups()}
    assert device.startswith("crw-rw-rw-")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 77", 77), ("kill -KILL $$", 137)]
)
def test_exec_ends_with_the_commands_exit_code(script: str, code: int, pyvmm: Pyvmm) -> None:
    assert pyvmm("host", "exec", "--", "sh", "-c", script).returncode == code


def test_exec_of_a_missing_command_exits_with_127(pyvmm: Pyvmm) -> None:
    done = pyvmm("host", "exec", "no-such-program")

    assert "no-such-program: No such file" in message(done)
    assert done.returncode == 127


def test_exec_passes_input_and_output(pyvmm: Pyvmm) -> None:
    data = os.urandom(300_000)

    done = subprocess.run(
        [*pyvmm.command, "host", "exec", "cat"], input=data, capture_output=True, timeout=ENOUGH_S
    )

    assert done.stdout == data


def test_exec_has_python_with_pyvmm(pyvmm: Pyvmm) -> None:
    code = "import os, pyvmm, platform; print(platform.machine(), os.path.exists('/dev/kvm'))"

    done = pyvmm("host", "exec", "--", "python3", "-c", code)

    assert (done.stdout, done.stderr) == ("aarch64 True\n", "")


def test_pyvmm_in_a_shell_of_the_host_imports_nothing_of_the_users(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit(9)\n")
    script = f"cd {tmp_path} && PYTHONPATH={tmp_path} pyvmm --version"

    done = pyvmm("host", "exec", "--", "sh", "-c", script)

    assert done.stdout.startswith("pyvmm "), done.stderr
    assert done.returncode == 0


def test_hosts_started_from_one_state_have_different_random_numbers_and_the_right_time(
    pyvmm: Pyvmm,
) -> None:
    code = "import os, time; print(os.urandom(8).hex(), hash('x'), time.time())"
    seen = []
    for _ in range(2):
        pyvmm("host", "stop")
        seen.append(pyvmm("host", "exec", "--", "python3", "-c", code).stdout.split())
        assert abs(float(seen[-1][2]) - time.time()) < 30

    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_shell_is_a_terminal_in_the_host(pyvmm: Pyvmm, tmp_path: Path) -> None:
    with Terminal() as terminal:
        before = terminal.mode
        process = terminal.start([*pyvmm.command, "host", "shell"], cwd=tmp_path)

        terminal.type(b"stty size; uname -m; pwd; exit 5\r")

        terminal.expect(b"24 80\r\naarch64\r\n" + str(tmp_path).encode())
        assert terminal.wait(process) == 5
        assert terminal.mode == before


@pytest.mark.matrix
def test_hosts_with_other_cpus_run_side_by_side_and_stop_one_by_one(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    pyvmm("host", "start", *OTHER, timeout=FIRST_S)

    cpus = sorted(host["cpu"].partition(",pauth")[0] for host in pyvmm.hosts())
    lengths = pyvmm("run", "sve-vls", "-c", "1", *OTHER).stdout.splitlines()[-1]
    default = pyvmm("run", "sve-vls", "-c", "1").stdout.splitlines()[-1]
    stopped = pyvmm("host", "stop", *OTHER)
    left = pyvmm.hosts()

    assert cpus == ["max,sve-max-vq=1", "max,sve2048=on"]
    assert lengths == "SVE vector lengths: 128"
    assert default == "SVE vector lengths: 128 256 512 1024 2048"
    assert stopped.stderr.endswith(": stopped\n")
    assert [host["cpu"].partition(",pauth")[0] for host in left] == ["max,sve2048=on"]


def test_stop_ends_the_process_and_a_second_stop_finds_no_host(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    process = pyvmm.hosts()[0]["pid"]

    done = pyvmm("host", "stop", "--all")

    assert done.returncode == 0
    wait_for(lambda: not is_alive(process), "the host's end")
    assert pyvmm.hosts() == []
    again = pyvmm("host", "stop")
    assert (again.stderr, again.returncode) == ("no such host is running\n", 0)


def test_idle_host_ends_by_itself(pyvmm: Pyvmm) -> None:
    pyvmm("host", "stop")

    pyvmm("host", "exec", "true", env={**os.environ, "PYVMM_HOST_IDLE": "1"})

    wait_for(lambda: pyvmm.hosts() == [], "the host's end")


@pytest.mark.matrix
def test_rm_stops_the_host_and_the_next_start_makes_it_again(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    (host,) = pyvmm.hosts()

    done = pyvmm("host", "rm")
    twice = pyvmm("host", "rm")

    assert (done.stderr, done.returncode) == (f"{host['name']}: removed\n", 0)
    assert (twice.stderr, twice.returncode) == ("no such host is saved\n", 0)
    assert not is_alive(host["pid"])
    assert not Path(host["saved"]).exists()
    again = pyvmm("run", "exit", "-p", "exit=8", timeout=FIRST_S)
    assert "booting the emulated host once" in again.stderr
    assert again.returncode == 8


def test_unknown_cpu_is_refused_with_qemus_message(pyvmm: Pyvmm) -> None:
    done = pyvmm("host", "start", "--host-cpu", "z80")

    assert done.returncode == 3
    assert "z80" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(host["cpu"].startswith("z80") for host in pyvmm.hosts())


SCRIPT = r"""
set -e
cat <(echo one) /dev/stdin <<<two
echo three >/dev/stdout
echo four >/dev/stderr
name=$(mktemp) && rm "$name"
timeout -k 1s --foreground 5 echo five
getopt -o g: -l group: -- --group six
pyvmm version
sh -c 'command -v pyvmm'
"""


def test_host_has_what_the_scripts_of_kvm_unit_tests_need(pyvmm: Pyvmm) -> None:
    done = pyvmm("host", "exec", "--", "bash", "-c", SCRIPT)

    *first, version, path = done.stdout.splitlines()
    assert first == ["one", "two", "three", "five", " --group 'six' --"], done.stderr
    assert version == pyvmm("version").stdout.strip()
    assert path == "/usr/bin/pyvmm"
    assert (done.stderr, done.returncode) == ("four\n", 0)
