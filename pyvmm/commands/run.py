"""``pyvmm run``: boot a guest and attach its console."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm import host
from pyvmm.arm64 import vl
from pyvmm.cli import Invocation
from pyvmm.commands._armopts import HOST, arm_config, arm_options, cpu_model
from pyvmm.commands._deviceopts import (
    device_configs,
    device_needs,
    device_options,
    forwarded_programs,
)
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._lkvm import NO_PCI, LkvmCommand, lkvm_options
from pyvmm.commands._options import EXISTING_FILE, FILE, NEW_SNAPSHOT, FileName, no_sandbox
from pyvmm.config import Config, SveRequest
from pyvmm.errors import HostError, ImageError, UsageError, VmmError
from pyvmm.host.settings import HostSettings
from pyvmm.host.share import Needs

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from pyvmm.commands._attached import Extras
    from pyvmm.cpumodel.model import CpuModel

# Options that --share excludes, with the reasons
NOT_WITH_SHARE = {
    "reboot": "virtiofsd ends with its machine",
    "save_on_exit": "virtiofsd's open files are not in a snapshot",
    "migrate_on_prompt": "virtiofsd's open files are not in a snapshot",
}
GUESTS = Path(__file__).parents[1] / "guests"
# Log levels at which an error is its reason alone: kvm-unit-tests shows the last line.
WITHOUT_HINTS = ("error", "warning")


def complete_image(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Return a shell's completions of an image: guests of pyvmm, and files."""
    from click.shell_completion import CompletionItem  # lazily: for completion only

    guests = [CompletionItem(name) for name in bundled_guests() if name.startswith(text)]
    return [CompletionItem(text, type="file"), *guests]


@click.command(
    cls=LkvmCommand,
    epilog="Ctrl-A x stops the guest, Ctrl-A Ctrl-A sends a Ctrl-A, Ctrl-A h shows the keys. "
    "Exit codes: 0 the guest switched itself off; N it wrote N to the exit register; 1 it failed; "
    "2 usage; 3 the host lacks something; 124 --timeout; 128+n signal n.",
)
@click.argument("image", required=False, shell_complete=complete_image)
@click.option(
    "-k", "--kernel", metavar="IMAGE", shell_complete=complete_image,
    help="The image, if not given as IMAGE.",
)  # fmt: skip
@click.option("-c", "--cpus", type=int, show_default="CPUs online", help="vCPUs.")
@click.option("-p", "--params", default="", metavar="TEXT", help="Kernel command line.")
@click.option("-i", "--initrd", type=FileName(path_type=Path), help="Initial RAM disk.")
@click.option("--name", metavar="NAME", show_default="guest-PID", help="The guest's name.")
@click.option("--sve", is_flag=True, help="Require SVE, with all of the host's vector lengths.")
@click.option("--sve-vls", metavar="BITS,...", help="Exactly these SVE vector lengths: 128,256.")
@click.option("--sve-max-vl", metavar="BITS", help="Every vector length of the host up to BITS.")
@click.option("--no-sve", is_flag=True, help="Hide SVE from the guest.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End the guest after SECONDS.")
@click.option("-v", "--verbose", is_flag=True, help="Describe the machine on stderr.")
@click.option(
    "--dump-dtb", type=FILE, metavar="FILE",
    help="Write the device tree blob to FILE.",
)  # fmt: skip
@click.option("--no-fast-mmio", is_flag=True, help="Handle every device access in Python.")
@click.option(
    "--no-vmgenid", is_flag=True,
    help="Leave out the VM generation ID, which tells the guest that it is a clone.",
)  # fmt: skip
@click.option("--debug-mmio", is_flag=True, help="Show accesses outside RAM and devices on stderr.")
@click.option(
    "--console", type=click.Choice(["serial", "virtio", "hv"]), default="serial",
    help="The guest's console: the first UART, or a virtio console.",
)  # fmt: skip
@click.option(
    "--tty", "ttys", type=int, multiple=True, metavar="N",
    help="Put terminal N on a pseudo-terminal: 0 the console, 1-3 the other UARTs; repeatable.",
)  # fmt: skip
@click.option(
    "--virtio-transport", type=click.Choice(["pci", "pci-legacy", "mmio", "mmio-legacy"]),
    default="mmio", help="The transport of virtio devices. pyvmm has no PCI yet: use MMIO.",
)  # fmt: skip
@click.option(
    "-n", "--network", is_flag=False, flag_value="mode=user", metavar="mode=none",
    help="pyvmm has no network device yet: it accepts only mode=none.",
)  # fmt: skip
@click.option("--nodefaults", is_flag=True, help="Use only --params as the kernel command line.")
@click.option(
    "--loglevel", type=click.Choice([*WITHOUT_HINTS, "info", "debug"]),
    help="error and warning leave the hints of errors out; info and debug mean --verbose.",
)  # fmt: skip
@click.option(
    "--save-on-exit", type=NEW_SNAPSHOT, metavar="FILE",
    help="Save the guest to FILE when a signal, key or timeout ends it, for `pyvmm restore`.",
)  # fmt: skip
@click.option(
    "--migrate-on-prompt", is_flag=True,
    help="When the guest prints 'Now migrate the VM', save it, restore it in a new process, and "
    "press a key: for the migration tests of kvm-unit-tests.",
)  # fmt: skip
@click.option(
    "--trace", type=FILE, metavar="FILE",
    help="Write a trace of every VM exit to FILE, for ui.perfetto.dev.",
)  # fmt: skip
@click.option(
    "--gdb", is_flag=False, flag_value="", metavar="[=PORT|PATH]",
    help="Accept a debugger at a TCP port of 127.0.0.1, or a Unix socket (default: NAME.gdb beside "
    "the control socket). `pyvmm gdb NAME` needs no --gdb.",
)  # fmt: skip
@click.option(
    "--symbols", type=EXISTING_FILE, metavar="FILE",
    help="Name addresses in errors by an ELF file's symbols, or a System.map.",
)  # fmt: skip
@click.option("--gdb-wait", is_flag=True, help="Run nothing until a debugger continues the guest.")
@click.option("--reboot", is_flag=True, help="Start the guest again when it resets.")
@no_sandbox
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@device_options
@arm_options
@lkvm_options
@host_options
@click.pass_obj
def run(invocation: Invocation, /, where: HostSettings, **options: Any) -> int:
    """Boot a guest and attach its console.

    IMAGE is an AArch64 ELF, an arm64 Linux Image, a flat binary, or the name of a guest that comes
    with pyvmm, such as sve-vls. A file may be packed: gzip, zstd, xz, lzma, bzip2, lz4, lzo, zboot.
    """
    invocation.debug |= options["debug"]
    try:
        return _checked(invocation, where, options)
    except VmmError as error:
        if options["loglevel"] in WITHOUT_HINTS:
            error.hint = None
        raise


def _checked(invocation: Invocation, where: HostSettings, options: dict[str, Any]) -> int:
    _refuse_unsupported(options)
    try:
        config = _config(options)
    except vl.TextError as error:
        raise _with_advice(error, where) from None
    written = (options["dump_dtb"], options["save_on_exit"], options["trace"])
    outputs = [path for path in written if path is not None]
    saves = options["save_on_exit"] is not None or options["migrate_on_prompt"]
    needs = _needs(config, outputs)
    if options["cpu"] != HOST:
        needs += Needs(reads=(Path(options["cpu"]),))
    if options["share"] and not host.is_local(where):
        needs += forwarded_programs()
    gdb = _debugger_place(options, config)
    if options["symbols"] is not None:
        needs += Needs(reads=(options["symbols"],))
    run_here_or_forward(where, needs, config.ttys, saves=saves, gdb=gdb)
    return _run(config, options, invocation.owns_process)


def _refuse_unsupported(options: dict[str, Any]) -> None:
    """Refuse lkvm's values that pyvmm does not support yet."""
    if options["reboot"] and options["ttys"]:
        raise UsageError("--reboot and --tty do not work together yet: a new machine has new ptys")
    for name, why in NOT_WITH_SHARE.items():
        if options["share"] and options[name]:
            raise UsageError(f"--{name.replace('_', '-')} and --share do not work together: {why}")
    if options["migrate_on_prompt"]:
        for option in ("ttys", "reboot", "save_on_exit"):
            if options[option]:
                name = {"ttys": "tty"}.get(option, option).replace("_", "-")
                raise UsageError(f"--migrate-on-prompt and --{name} do not work together")
    if options["console"] == "hv":
        raise UsageError("--console hv: PowerPC only", hint="use serial or virtio")
    if options["virtio_transport"] not in ("mmio", "mmio-legacy"):
        raise UsageError(f"--virtio-transport {options['virtio_transport']}: {NO_PCI}")
    network = options["network"]
    if network is not None and network.split(",")[0] not in ("none", "mode=none"):
        raise UsageError(
            f"--network {network}: there is no virtio network device yet",
            hint="leave it out, or give --network mode=none",
        )


def _config(options: dict[str, Any]) -> Config:
    """Return the machine that the options describe."""
    model = cpu_model(options)
    named = {} if options["name"] is None else {"name": options["name"]}
    return Config(
        image=find_image(_one_image(options["image"], options["kernel"])),
        vcpus=options["cpus"],
        sve=_sve(options, model),
        params=options["params"],
        nodefaults=options["nodefaults"],
        console=options["console"],
        ttys=_once_each(options["ttys"]),
        initrd=options["initrd"],
        timeout_s=options["timeout"],
        virtio_transport=options["virtio_transport"],
        fast_mmio=not options["no_fast_mmio"],
        # A migrated guest is no clone.  The tests would count the interrupt: they enable every
        # shared interrupt, because their loop over GICD_IGROUPR runs into GICD_ISENABLER.
        vmgenid=not (options["no_vmgenid"] or options["migrate_on_prompt"]),
        devices=device_configs(options),
        **arm_config(options, model),
        **named,
    )


def _sve(options: dict[str, Any], model: CpuModel | None) -> SveRequest:
    """Return the request for vector lengths: the options', else the CPU model's."""
    vls, max_vl = options["sve_vls"], options["sve_max_vl"]
    request = SveRequest(
        required=options["sve"],
        off=options["no_sve"],
        vls=None if vls is None else vl.parse(vls, subject="--sve-vls"),
        max_vl=None
        if max_vl is None
        else vl.parse_max(max_vl, subject="--sve-max-vl", list_subject="--sve-vls"),
    )
    if model is None or model.vls is None or request.wanted or request.off:
        return request
    return SveRequest(vls=model.vls) if model.vls else SveRequest(off=True)


def _debugger_place(options: dict[str, Any], config: Config) -> str | None:
    """Return where debuggers connect, or None without --gdb and --gdb-wait."""
    place: str | None = options["gdb"]
    if place is None and not options["gdb_wait"]:
        return None
    if place:
        return place
    from pyvmm.base.dirs import runtime_dir  # lazily: rarely used
    from pyvmm.control.debugging import SUFFIX
    from pyvmm.control.sockets import VMS

    return str(runtime_dir(VMS) / f"{config.name}{SUFFIX}")


def _once_each(ttys: Sequence[int]) -> frozenset[int]:
    for number in ttys:
        if ttys.count(number) > 1:
            raise UsageError(f"--tty {number}: given twice")
    return frozenset(ttys)


def _one_image(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None:
        raise UsageError(f"two images, {argument} and -k {option}: give one")
    name = argument if option is None else option
    if name is None:
        raise UsageError("no image to boot", hint=f"pyvmm run IMAGE; {_bundled_hint()}")
    if not name:
        raise UsageError(
            "the image's name is empty",
            hint="a shell's variable without a value gives an empty name",
        )
    return name


def find_image(name: str) -> Path:
    """Return the file of that name, or the guest of pyvmm with that name."""
    path = Path(name)
    return GUESTS / name if name in bundled_guests() and not _is_there(path) else path


def _is_there(path: Path) -> bool:
    """Return whether a file exists.

    Raises: UsageError, with the kernel's reason, if pyvmm cannot find out.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UsageError(
                f"{path} is a symbolic link to {path.readlink()}, which does not exist"
            ) from None
        return False
    except OSError as error:
        raise UsageError(f"Unable to open {path}: {error.strerror}") from error
    except ValueError:  # a NUL, which the configuration refuses
        return False
    return True


def _needs(config: Config, outputs: list[Path]) -> Needs:
    """Return the user's files that a run reads or writes."""
    given = (config.image, config.initrd, config.hugetlbfs)
    inputs = [path for path in given if path is not None and path.parent != GUESTS]
    needs = Needs(reads=tuple(inputs), creates=tuple(outputs)) + device_needs(config.devices)
    reads, updates = (
        tuple(path for path in paths if _is_there(path)) for paths in (needs.reads, needs.updates)
    )
    return Needs(reads=reads, updates=updates, creates=needs.creates)


def bundled_guests() -> list[str]:
    """Return the names of the guests that come with pyvmm."""
    return sorted(path.name for path in GUESTS.glob("*") if path.is_file())


def _bundled_hint() -> str:
    names = ", ".join(bundled_guests())
    if names:
        return f"guests that come with pyvmm: {names}"
    return "the guests that come with pyvmm are not built: make guests"  # an editable install


def _with_advice(error: vl.TextError, where: HostSettings) -> UsageError:
    """Return the error with the sets that the host can give; an emulated host reports it itself."""
    with contextlib.suppress(HostError):  # the text is wrong without a host too
        run_here_or_forward(where)
        from pyvmm.kvm import sve
        from pyvmm.kvm.system import System

        with System.open() as system:
            return error.on(sve.host_vector_lengths(system))
    return error


def _run(config: Config, options: dict[str, Any], owns_process: bool) -> int:
    # Imported lazily: a command that is forwarded does not need them.
    from pyvmm.commands._attached import Extras

    extras = Extras(
        verbose=options["verbose"] or options["loglevel"] in ("info", "debug"),
        dump_dtb=options["dump_dtb"],
        debug_mmio=options["debug_mmio"],
        reboot=options["reboot"],
        save_on_exit=options["save_on_exit"],
        trace=options["trace"],
        sandbox=owns_process and not options["no_sandbox"],
        gdb=options["gdb"],
        gdb_wait=options["gdb_wait"],
        symbols=options["symbols"],
    )
    if options["migrate_on_prompt"]:
        from pyvmm.commands._migrating import Migrating

        again = ("--no-sandbox",) if options["no_sandbox"] else ()
        migrating = Migrating(config.name, config.timeout_s, again)
        return migrating.run(lambda saved: _run_to_end(config, extras.replace(save_on_exit=saved)))
    return _run_to_end(config, extras)


def _run_to_end(config: Config, extras: Extras) -> int:
    from pyvmm.commands._attached import run_attached

    try:
        return run_attached(config, extras)
    except ImageError as error:
        if _is_there(config.image):
            raise
        # kvm-unit-tests looks for these words: only the image was missing.
        raise ImageError(f"Fatal: {error.message}", hint=_bundled_hint()) from error
