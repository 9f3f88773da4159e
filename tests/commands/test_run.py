"""`pyvmm run`: refusals before the guest runs, and its console on a terminal."""

from __future__ import annotations

import gzip
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import cli, host, layout
from pyvmm.commands import run
from pyvmm.commands._lkvm import ALREADY_SO, REFUSED, SHORT, _with_optional_values
from pyvmm.commands.run import GUESTS, bundled_guests, find_image
from pyvmm.config import Config
from tests import programs
from tests.privileges import bound_by_modes
from tests.tty import ENOUGH_S, Terminal

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def never_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a command that should be refused from starting an emulated host."""
    monkeypatch.setenv("PYVMM_HOST", "local")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "0"], "-c 0: a machine needs at least 1 vCPU"),
        (["-c", "-3"], "-c -3: a machine needs at least 1 vCPU"),
        (["-m", "0"], "-m 0: a machine needs memory"),
        (["-m", "4095B"], "is not a multiple of 4 KiB"),
        (["-m", "lots"], "'lots' is not a size"),
        (["-m", "512M@1G"], "RAM starts at 0x80000000 or higher"),
        (["--timeout", "0"], "--timeout 0"),
        (["--timeout", "nan"], "--timeout nan"),
        (["--no-sve", "--sve"], "--no-sve and --sve contradict each other"),
        (["--no-sve", "--sve-vls=128"], "--no-sve and --sve-vls=128 contradict each other"),
        (["--no-sve", "--sve-max-vl=256"], "--no-sve and --sve-max-vl=256 contradict"),
        (["--sve-vls=128", "--sve-max-vl=256"], "--sve-vls and --sve-max-vl both"),
        (["--sve-max-vl=100"], "--sve-max-vl=100: 100 is not a multiple of 128"),
        (["-k", "other"], "two images, image and -k other"),
        (["--console", "hv"], "--console hv: PowerPC only"),
        (["--irqchip", "gicv2m"], "--irqchip gicv2m: its messages need PCI"),
        (["--migrate-on-prompt", "--reboot"], "--migrate-on-prompt and --reboot do not work"),
        (["--migrate-on-prompt", "--tty", "1"], "--migrate-on-prompt and --tty do not work"),
        (["--network", "mode=user"], "--network mode=user: there is no virtio network device yet"),
        (["--tty", "4"], "--tty 4: a guest has terminals 0 to 3"),
        (["--tty=-1"], "--tty -1: a guest has terminals 0 to 3"),
        (["--tty", "1", "--tty", "0", "--tty", "1"], "--tty 1: given twice"),
        (["--host-cpu", "max, sve=off"], "not a CPU QEMU could know"),
    ],
)
def test_mistake_is_refused_in_one_message(
    arguments: list[str], words: str, capsys: Capture
) -> None:
    code = cli.main(["run", *arguments, "image"])
    message, *hint = capsys.readouterr().err.splitlines()

    assert code == 2
    assert message.startswith("pyvmm: ")
    assert words in message
    assert len(hint) <= 1


@pytest.mark.parametrize(
    ("words", "has"), [([], True), (["--no-vmgenid"], False), (["--migrate-on-prompt"], False)]
)
def test_no_vmgenid_leaves_the_generation_id_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], has: bool
) -> None:
    found: list[Config] = []
    monkeypatch.setattr(run, "run_here_or_forward", lambda *_, **__: None)
    monkeypatch.setattr(run, "_run", lambda config, *_: found.append(config))

    cli.main(["run", *words, str(programs.write("spin", tmp_path))])

    assert [config.vmgenid for config in found] == [has]


LONG = "x" * 300  # no file system has such a name


@pytest.mark.parametrize("option", [[], ["-k"], ["-i"], ["-d"], ["--pmem"], ["--hugetlbfs"]])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (LONG, f"{LONG}: File name too long"),
        ("loop", "loop: Too many levels of symbolic links"),
        ("dangling", "dangling is a symbolic link to nowhere, which does not exist"),
        ("closed/file", "closed/file: Permission denied"),
    ],
    ids=["long", "loop", "dangling", "closed"],
)
def test_file_that_cannot_be_reached_is_refused_with_the_reason(
    option: list[str], name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    Path("closed").mkdir(mode=0)
    image = [] if option in ([], ["-k"]) else ["echo"]

    with bound_by_modes():
        code = cli.main(["run", *option, name, *image])

    assert code == 2
    message = capsys.readouterr().err
    assert words in message.partition("\n")[0]
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "the image's name is empty"),
        (["-k", ""], "the image's name is empty"),
        *(
            ([option, "", "echo"], f"{option}: the file's name is empty")
            for option in ("--initrd", "--dump-dtb", "--trace", "--save-on-exit")
        ),
    ],
)
def test_empty_name_is_not_the_current_directory(
    arguments: list[str], words: str, capsys: Capture
) -> None:
    code = cli.main(["run", *arguments])

    assert code == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert words in message
    assert "variable" in hint


@pytest.mark.parametrize(
    "text", ["", "0", "100", "-128", "1,2", "16,32", "128,128", "4096", "128,"]
)
@pytest.mark.parametrize("form", ["one word", "two words"])
def test_bad_vector_lengths_are_refused_in_either_spelling(
    text: str, form: str, capsys: Capture
) -> None:
    option = [f"--sve-vls={text}"] if form == "one word" else ["--sve-vls", text]

    code = cli.main(["run", *option, "image"])

    assert code == 2
    assert capsys.readouterr().err.startswith(f"pyvmm: --sve-vls={text}: ")


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("value", [[], ["1"]])
def test_unsupported_options_of_lkvm_are_refused_by_name(
    refused: str, value: list[str], capsys: Capture
) -> None:
    for name in [refused, *(short for short, long in SHORT.items() if long == refused)]:
        code = cli.main(["run", "-c", "1", name, *value, "image"])

        assert code == 2
        assert capsys.readouterr().err == f"pyvmm: {refused}: {REFUSED[refused]}\n"


@pytest.mark.parametrize("refused", REFUSED)
def test_variables_of_unsupported_options_are_refused_by_name(
    refused: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    variable = "PYVMM_RUN_" + refused.strip("-").upper().replace("-", "_")
    monkeypatch.setenv(variable, "1")

    code = cli.main(["run", "-c", "1", "image"])

    assert code == 2
    assert capsys.readouterr().err.startswith(f"pyvmm: {variable}: {REFUSED[refused]}\n")


def test_empty_variables_of_unsupported_options_are_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PYVMM_RUN_FIRMWARE", "")
    empty = cli.main(["run", "-c", "0", "image"])
    monkeypatch.setenv("PYVMM_RUN_FIRMWARE", "1")
    helped = cli.main(["run", "--help"])

    assert (empty, helped) == (2, 0)
    assert "-c 0" in capsys.readouterr().err


def test_unknown_option_is_refused_as_unknown(capsys: Capture) -> None:
    code = cli.main(["run", "--firmwares", "image"])

    assert code == 2
    assert "No such option" in capsys.readouterr().err


def test_options_without_effect_are_accepted(capsys: Capture) -> None:
    code = cli.main(["run", *ALREADY_SO, "-c", "0", "image"])

    assert code == 2
    assert "-c 0" in capsys.readouterr().err


def test_kvm_unit_tests_command_line_is_accepted(capsys: Capture) -> None:
    line = "--kernel F.flat --cpus 0 --params x --nodefaults --network mode=none --loglevel=warning"

    code = cli.main(["run", *line.split(), "--mem", "256", "--irqchip=gicv3", "--initrd", "E"])

    assert code == 2
    assert "-c 0" in capsys.readouterr().err  # the only error in it


@pytest.mark.parametrize(
    ("level", "lines"), [("error", 1), ("warning", 1), ("info", 2), ("debug", 2), (None, 2)]
)
def test_error_has_a_hint_unless_the_log_level_leaves_it_out(
    level: str | None, lines: int, capsys: Capture
) -> None:
    levels = [] if level is None else ["--loglevel", level]

    code = cli.main(["run", "--console", "hv", *levels, "image"])

    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said[0] == "pyvmm: --console hv: PowerPC only"
    assert len(said) == lines


def test_environment_variables_set_options(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PYVMM_RUN_MEM", "plenty")

    code = cli.main(["run", "image"])

    assert code == 2
    assert "'plenty' is not a size" in capsys.readouterr().err


def test_missing_image_argument_names_the_bundled_guests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "hello").touch()
    (tmp_path / "timer").touch()
    monkeypatch.setattr("pyvmm.commands.run.GUESTS", tmp_path)

    code = cli.main(["run"])

    assert code == 2
    assert "hello, timer" in capsys.readouterr().err


def test_missing_image_names_the_command_that_builds_the_guests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr("pyvmm.commands.run.GUESTS", tmp_path)

    assert cli.main(["run"]) == 2
    assert "the guests that come with pyvmm are not built: make guests" in capsys.readouterr().err


def test_bundled_guest_is_found_by_name_unless_a_file_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guests, here = tmp_path / "guests", tmp_path / "here"
    guests.mkdir()
    here.mkdir()
    (guests / "hello").touch()
    monkeypatch.setattr("pyvmm.commands.run.GUESTS", guests)
    monkeypatch.chdir(here)

    assert bundled_guests() == ["hello"]
    assert find_image("hello") == guests / "hello"
    assert find_image("./hello") == Path("hello")
    assert find_image("../guests/hello") == Path("../guests/hello")
    (here / "hello").touch()
    assert find_image("hello") == Path("hello")


def test_guests_directory_is_in_the_package() -> None:
    assert Path(cli.__file__).parent / "guests" == GUESTS


PYVMM = [sys.executable, "-P", "-m", "pyvmm"]


def environment() -> dict[str, str]:
    """Return the environment in which a new process imports the pyvmm under test."""
    under_test = str(Path(cli.__file__).parents[1])  # before any other pyvmm on the path
    path = os.pathsep.join([under_test, *sys.path])
    return {**os.environ, "PYTHONPATH": path, "PYVMM_HOST": "auto"}


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as made:
        yield made


@pytest.fixture
def spinning(tmp_path: Path) -> str:
    """Return the path of a guest that never ends."""
    return str(programs.write("spin", tmp_path))


@pytest.mark.kvm
def test_keys_stop_the_guest_and_the_terminal_is_restored(
    terminal: Terminal, spinning: str
) -> None:
    before = terminal.mode
    process = terminal.start([*PYVMM, "run", "-v", "-c1", "-m16", spinning], env=environment())
    terminal.expect(b"sve  ")
    terminal.wait_for_raw_mode()

    terminal.type(b"\x01h")
    terminal.expect(b"stop the guest")
    terminal.type(b"\x03\x01x")

    assert terminal.wait(process) == 0
    assert terminal.mode == before


@pytest.mark.kvm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signal_ends_the_guest_and_the_terminal_is_restored(
    terminal: Terminal, spinning: str, number: signal.Signals
) -> None:
    before = terminal.mode
    process = terminal.start([*PYVMM, "run", "-v", "-c2", "-m16", spinning], env=environment())
    terminal.expect(b"sve  ")
    terminal.wait_for_raw_mode()

    process.send_signal(number)

    assert terminal.wait(process) == 128 + number
    assert terminal.mode == before


@pytest.mark.kvm
def test_verbose_describes_the_machine(spinning: str, capfd: Capture) -> None:
    code = cli.main(["run", "-v", "-c3", "-m64", "--timeout", "0.1", spinning])
    said = capfd.readouterr().err

    assert code == 124
    assert re.search(r"image +\S+spin \(flat binary\), entry 0x80080000\n", said)
    assert re.search(r"memory +64 MiB at 0x80000000", said)
    assert re.search(r"vcpus +3\n", said)
    assert "did not end within 0.1 s" in said


@pytest.mark.kvm
def test_run_mentions_bytes_of_the_image_that_it_does_not_use(
    tmp_path: Path, capfd: Capture
) -> None:
    image = programs.write("spin", tmp_path)
    image.write_bytes(gzip.compress(image.read_bytes()) + b"signature")

    code = cli.main(["run", "-c1", "-m16", "--timeout", "0.1", str(image)])

    assert code == 124
    assert "the last 9 bytes are not gzip data, and are not used\n" in capfd.readouterr().err


@pytest.mark.kvm
def test_missing_kernel_has_the_words_kvm_unit_tests_looks_for(capsys: Capture) -> None:
    code = cli.main(["run", "-c1", "-m64", "_NO_FILE_4Uhere_"])

    assert code == 2
    assert "Fatal: Unable to open kernel _NO_FILE_4Uhere_" in capsys.readouterr().err


@pytest.mark.kvm
def test_bad_vector_lengths_are_refused_with_sets_of_this_host(capsys: Capture) -> None:
    cli.main(["run", "--sve-vls=1", "image"])

    hint = capsys.readouterr().err.splitlines()[1]
    assert hint.endswith(("can give --sve-vls=128", "leave the option out"))


@pytest.mark.kvm
def test_dump_dtb_writes_the_guests_device_tree(tmp_path: Path) -> None:
    image, blob = programs.write("spin", tmp_path), tmp_path / "dtb"

    cli.main(["run", "-c1", "-m16", "--timeout=0.1", f"--dump-dtb={blob}", str(image)])

    assert blob.read_bytes()[:4] == bytes.fromhex("d00dfeed")


@pytest.mark.kvm
def test_output_reaches_a_pipe_and_a_reader_that_leaves_ends_the_guest(
    tmp_path: Path,
) -> None:
    image = tmp_path / "flood"
    # mov w1, #'y'; movz x2, #0x100, lsl #16 (the UART); then the program itself
    start_code = (0x52800F21, 0xD2A02002)
    image.write_bytes(
        b"".join(word.to_bytes(4, "little") for word in start_code) + programs.words("flood")
    )
    assert layout.UART.base == 0x100 << 16

    with subprocess.Popen(
        [*PYVMM, "run", "-c1", "-m16", "--timeout=120", str(image)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.read(100)
        process.stdout.close()
        code = process.wait(ENOUGH_S)
        complaints = process.stderr.read()

    assert said == b"y" * 100
    assert code == 141
    assert complaints == b""


@pytest.mark.parametrize("verb", ["run", "restore"])
def test_forwarded_verb_imports_nothing_of_the_machine(verb: str) -> None:
    """Only the emulated host needs them, and it has loaded them already."""
    script = f"import sys, pyvmm.commands.{verb}; print(*sys.modules, sep='\\n')"

    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()

    assert f"pyvmm.commands.{verb}" in loaded
    assert not {"pyvmm.machine.machine", "pyvmm.machine.board", "pyvmm.commands._attached"} & set(
        loaded
    )


def test_arm64_machine_whose_kvm_cannot_be_opened_gets_the_remedy_and_no_emulated_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    device = tmp_path / "kvm"  # a directory: no process can open it for writing
    device.mkdir()
    monkeypatch.setattr(host, "DEVICE", device)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr("pyvmm.host.machine", lambda: "aarch64")
    monkeypatch.delenv(host.INSIDE_VARIABLE, raising=False)
    monkeypatch.setenv("PYVMM_HOST", "auto")
    monkeypatch.setattr(host, "forward", lambda *_: pytest.fail("an emulated host was started"))

    code = cli.main(["run", "hello"])
    said = capsys.readouterr().err

    assert code == 3
    assert f"{device} cannot be opened: Is a directory [EISDIR]" in said
    assert "hint: " in said
    assert "--host emulated" in said


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["--gdb", "hello"], ["--gdb=", "hello"]),
        (["--gdb", "./guest.elf"], ["--gdb=", "./guest.elf"]),
        (["hello", "--gdb"], ["hello", "--gdb="]),
        (["--gdb", "1234", "hello"], ["--gdb", "1234", "hello"]),
        (["--gdb=/tmp/s", "hello"], ["--gdb=/tmp/s", "hello"]),
        ([], []),
    ],
)
def test_gdb_takes_only_a_port_as_its_next_word(words: list[str], parsed: list[str]) -> None:
    assert _with_optional_values(words) == parsed
