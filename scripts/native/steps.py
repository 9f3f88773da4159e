"""The commands that users type on the arm64 machine, and their expected results.

alice is in group kvm, bob is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MINUTE: Final = 60.0
SHARE: Final = "/mnt"
# No server listens there: a download of an emulated host fails at once.
NO_MIRROR: Final = "PYVMM_DEBIAN_MIRROR=http://127.0.0.1:9/debian"
ADVICE: Final = "sudo usermod -aG kvm bob, then log in again"
NOTHING_DOWNLOADED: Final = "test ! -e ~/.cache/pyvmm"
CLONE: Final = f"""
if [ -d pyvmm ]; then
    cd pyvmm && git fetch -q {SHARE}/pyvmm.bundle HEAD && git reset -q --hard FETCH_HEAD
else
    git clone -q -c advice.detachedHead=false {SHARE}/pyvmm.bundle pyvmm && cd pyvmm
fi
git log --oneline -1"""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of one user: its exit code, and patterns that its output must have or lack."""

    name: str
    user: str
    command: str
    says: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    code: int = 0
    note: str = ""  # a pattern; the table shows its match in the output
    timeout_s: float = 5 * MINUTE


def alice(name: str, command: str, *says: str, code: int = 0, minutes: float = 5) -> Step:
    """Make a step of alice in her clone."""
    inside = f"cd pyvmm && export PATH=$PWD/.venv/bin:$PATH && {{ {command}\n}}"
    return Step(name, "alice", inside, says, code=code, timeout_s=minutes * MINUTE)


# At each boot: the mirror, index and certificates of the machine around it, and the clones.
PREPARE: Final = (
    Step(
        "prepare", "root",
        f"mount -t 9p -o trans=virtio,version=9p2000.L,ro share {SHARE}"
        f" && cp -r {SHARE}/etc/. /etc/ && ls -l /dev/kvm && id alice && id bob",
        (r"crw-rw---- \S+ root kvm", r"alice.*\(kvm\)", r"bob(?!.*kvm)"),
    ),
    *(Step(f"clone, {user}", user, CLONE) for user in ("alice", "bob", "root")),
)  # fmt: skip

RUN: Final = (
    alice(
        "make run, the first time", "make run", "^SVE vector lengths: 128 256", minutes=30
    ),
    Step(
        "pyvmm run sve-vls, three times", "alice",
        "cd pyvmm && for i in 1 2 3; do time .venv/bin/pyvmm run sve-vls; done",
        ("^SVE vector lengths: 128 256 512 1024 2048",), note=r"real\s+(\S+)",
    ),
)  # fmt: skip

TOUR: Final = (
    alice("a set KVM cannot give", "pyvmm run --sve-vls=128,512 sve-vls",
          "KVM wants every length", "--sve-vls=128,256,512", code=3),
    alice("lkvm's old units", "pyvmm run --sve-vls=1,2 sve-vls", "kvmtool's old", code=3),
    alice("a larger machine", "pyvmm run -v -c 4 -m 512 --sve-max-vl=512 sve-vls",
          "sve     128,256,512 bits, as KVM reads it back", "^SVE vector lengths: 128 256 512$"),
    alice("an exit code", "pyvmm run exit -p exit=42", code=42),
    alice("a timeout", "pyvmm run --timeout 2 exit -p spin", "did not end within 2 s", code=124),
    alice(
        "a VM by its name",
        "(pyvmm run --name demo --sve-vls=128,256 -m 320 exit -p spin >demo.log 2>&1 &)\n"
        "until pyvmm list | grep demo; do sleep 1; done\n"
        "pyvmm pause -n demo && pyvmm resume -n demo && pyvmm stat -n demo\n"
        "pyvmm debug -d -n demo --vcpu 0 --part core && pyvmm debug -d -n demo >all.txt\n"
        "wc -l all.txt; pyvmm stop -n demo",
        "demo: paused", "demo: resumed", "counted by KVM", "general registers", "demo: stopped",
    ),
    alice("a trace", "pyvmm run --trace run.pftrace hello && ls -l run.pftrace"),
    alice("doctor", "pyvmm doctor", "VMs can run here", "/dev/kvm"),
    alice(
        "the library",
        "cat >guest.py <<'END'\nfrom pathlib import Path\n"
        "from pyvmm import Config, Machine, SveRequest\n"
        "config = Config(image=Path('pyvmm/guests/sve-vls'), vcpus=2,\n"
        "                sve=SveRequest(vls=frozenset({128, 256})))\n"
        "with Machine(config) as vm:\n    raise SystemExit(vm.run())\nEND\n"
        ".venv/bin/python guest.py",
        "^SVE vector lengths: 128 256$",
    ),
    alice(
        "a snapshot",
        "(pyvmm run --name demo exit -p spin >demo.log 2>&1 &)\n"
        "until pyvmm list | grep demo; do sleep 1; done\n"
        "pyvmm save demo demo.snap && pyvmm snapshot check demo.snap\n"
        "pyvmm snapshot show demo.snap --vcpu 0 --regs PSTATE\n"
        "(pyvmm restore demo.snap >demo.log 2>&1 &)\n"
        "until pyvmm list | grep demo; do sleep 1; done\n"
        "pyvmm stop -n demo",
        "saved, and ended", "PSTATE", "demo: stopped",
    ),
    alice("sve list", "pyvmm sve list", "128,256,512"),
    alice("sve explain", "pyvmm sve explain 128,256,512"),
    alice("a sweep", "pyvmm sweep sve-math --sve-vls-each all --jobs 2", minutes=10),
    alice("sve check", "pyvmm sve check", minutes=15),
    alice("repro zcr-el12", "pyvmm repro zcr-el12", "NOT REPRODUCED", minutes=15),
)  # fmt: skip

WHEEL: Final = (
    alice("make wheel", "make wheel && ls dist", r"cp311-abi3-linux_aarch64\.whl", minutes=15),
    Step(
        "the wheel in an environment of its own", "alice",
        "rm -rf ~/fresh && python3 -m venv ~/fresh && ~/fresh/bin/pip install -q pyvmm/dist/*.whl"
        " && cd / && ~/fresh/bin/pyvmm run sve-vls && ~/fresh/bin/pyvmm doctor"
        " && find ~/fresh -name '_kvm*.so'",
        (r"^SVE vector lengths: 128 256", "VMs can run here", r"_kvm\S*\.abi3\.so"),
        timeout_s=15 * MINUTE,
    ),
    Step(
        "the wheel for everybody", "root",
        "rm -rf /opt/pyvmm && python3 -m venv /opt/pyvmm"
        " && /opt/pyvmm/bin/pip install -q /home/alice/pyvmm/dist/*.whl && ls -l /opt/pyvmm/bin",
        ("pyvmm",), timeout_s=15 * MINUTE,
    ),
)  # fmt: skip

OUTSIDE: Final = (
    Step("make run, not in the group", "bob",
         f"cd pyvmm && make run; echo make: $?; test ! -e .venv && {NOTHING_DOWNLOADED}",
         (ADVICE, "EACCES", "Error 3", "make: 2"), ("getting ", "downloading ")),
    Step("make test-kvm, not in the group", "bob",
         f"cd pyvmm && make test-kvm; echo make: $?; test ! -e .venv && {NOTHING_DOWNLOADED}",
         (ADVICE, "Error 3", "make: 2"), ("getting ", "downloading ")),
    *(
        Step(f"pyvmm {words}, not in the group", "bob",
             f"/opt/pyvmm/bin/pyvmm {words}; code=$?; {NOTHING_DOWNLOADED} && exit $code",
             (says, "EACCES"), ("getting ", "downloading ", "Traceback"), code=3)
        for words, says in (("run hello", ADVICE), ("doctor", "usermod -aG kvm"),
                            ("--version && /opt/pyvmm/bin/pyvmm run --host local hello", ADVICE))
    ),
    Step("an emulated host, asked for", "bob",
         f"{NO_MIRROR} /opt/pyvmm/bin/pyvmm run --host emulated hello; code=$?;"
         " rm -rf ~/.cache/pyvmm; exit $code",
         ("getting .*from Debian",), (ADVICE,), code=3),
    Step("put into the group", "root", "usermod -aG kvm bob"),
    Step("pyvmm run hello, in the group", "bob", "/opt/pyvmm/bin/pyvmm run hello", ("[Hh]ello",)),
    Step("taken out again", "root", "gpasswd -d bob kvm"),
)  # fmt: skip

ROOT: Final = (
    Step("make run, as root", "root", "cd pyvmm && make run", ("^SVE vector lengths: 128 256",),
         timeout_s=30 * MINUTE),
)  # fmt: skip

WITHOUT: Final = (
    Step("no /dev/kvm", "root", "mv /dev/kvm /dev/kvm.away"),
    Step("pyvmm run hello, without KVM", "alice",
         f"cd pyvmm && {NO_MIRROR} .venv/bin/pyvmm run hello",
         ("pyvmm: /dev/kvm does not exist: .*; using an emulated host", "getting "), code=3),
    Step("/dev/kvm again", "root", "mv /dev/kvm.away /dev/kvm"),
)  # fmt: skip

TESTS: Final = (
    Step("make test-kvm", "alice", "cd pyvmm && make test-kvm",
         (r"\d+ passed",), note=r"=+ (.*(?:passed|failed).*) =+", timeout_s=120 * MINUTE),
)  # fmt: skip

STAGES: Final = {
    "run": RUN,
    "tour": TOUR,
    "wheel": WHEEL,
    "outside": OUTSIDE,
    "root": ROOT,
    "without": WITHOUT,
    "tests": TESTS,
}
