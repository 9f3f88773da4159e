"""A fake pyvmm for every machine: the image's name chooses what the guest does."""

from __future__ import annotations

import json
import sys

from pyvmm.svecheck.probe import Probe

POWERS = frozenset({128, 256, 512})
PROBE = Probe(
    kernel="Linux 6.12.0", machine="Blade 7", emulated=False, midrs=(0x410F_D4F0,),
    vls=POWERS, prctl=POWERS, rdvl=POWERS,
)  # fmt: skip

# IMAGE is WORD, WORD@SET or WORD@SET@WORD, the last for other sets; unknown words pass.
FAKE = f"""
import signal, sys, time
from pathlib import Path

words = sys.argv[1:]
if words[0] == "sve":
    if "--host-cpu=none" in words:
        print("pyvmm: no such CPU\\n  hint: take another", file=sys.stderr)
        sys.exit(3)
    print({json.dumps(json.dumps(PROBE.document()))})
    sys.exit()
lengths = next((w.partition("=")[2] for w in words if w.startswith("--sve-vls=")), "none")
timeout = float(words[words.index("--timeout") + 1]) if "--timeout" in words else 60
what, where, otherwise = [*Path(words[-1]).name.split("@"), "", ""][:3]
if where and where != lengths:
    what = otherwise
print("guest at", lengths, flush=True)
if what == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
if what == "hang":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    end = time.monotonic() + timeout
    while time.monotonic() < end:  # a signal before a sleep begins is handled after it
        time.sleep(0.01)
    print("pyvmm: the guest did not end within its time", file=sys.stderr)
    sys.exit(124)
if what == "lacking":
    print("pyvmm: the host lacks it\\n  hint: none", file=sys.stderr)
    sys.exit(3)
if what == "wrong":
    print("pyvmm: no such image", file=sys.stderr)
    sys.exit(2)
if what == "flood":
    print("x" * 3_000_000)
if what == "cat":
    print(Path(words[-1]).read_text())
if what.startswith("exit"):
    sys.exit(int(what[4:]))
"""

COMMAND = (sys.executable, "-c", FAKE)
