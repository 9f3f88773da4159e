"""The user's command in the emulated host, in a process forked from the agent.

`pyvmm ...` and `python3 -m MODULE ...` run in the forked interpreter, which has all modules
loaded.  For other commands the process calls exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import io
import os
import random
import runpy
import signal
import sys
import termios
import traceback
from pathlib import Path
from typing import Final, NoReturn, TextIO

from pyvmm.base.computer import TREE_VARIABLE
from pyvmm.base.output import printable
from pyvmm.host.inside import files
from pyvmm.host.share import WHOLE
from pyvmm.host.wire import CommandRequest

ENTRY: Final = ("pyvmm.cli", "main")
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
INTERRUPTED: Final = 128 + signal.SIGINT
PATH: Final = "/usr/bin:/usr/sbin"
LIBRARY: Final = "/run/pyvmm/lib"
RUNTIME_DIRS: Final = Path("/run/user")
PR_SET_DUMPABLE: Final = 4  # Source: Linux, include/uapi/linux/prctl.h


def run_command(request: CommandRequest, fds: list[int], slave: int) -> NoReturn:
    """Run the command in this forked process, and end."""
    code = 1
    try:
        _set_up(request, fds, slave)
        code = _start(request)
    except SystemExit as end:
        code = _code(end)
    except OSError as error:
        about = f"pyvmm: {error.filename or request.argv[0]}: {error.strerror}"
        print(printable(about), file=sys.stderr)
        missing = isinstance(error, FileNotFoundError)
        code = NOT_FOUND if missing else NOT_EXECUTABLE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _set_up(request: CommandRequest, fds: list[int], slave: int) -> None:
    """Set the user's identity, directory, environment and standard streams."""
    signal.set_wakeup_fd(-1)
    for caught in (signal.SIGCHLD, signal.SIGIO):
        signal.signal(caught, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    if slave >= 0:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.fchown(fd, request.uid, request.gid)  # for programs that open /dev/stdout
    os.closerange(3, 256)
    _reopen_streams()
    if request.tree is not None:
        files.show_tree(request.tree)
    runtime = _runtime_dir(request.uid, request.gid)
    os.umask(request.umask)
    own = {"PATH": PATH, "TMPDIR": "/run/tmp", "XDG_RUNTIME_DIR": runtime, "LANG": "C.UTF-8"}
    os.environ.clear()
    os.environ.update({**request.environment, **own})
    if request.tree is not None and not request.tree.startswith(WHOLE):
        os.environ[TREE_VARIABLE] = request.tree
    os.setgroups(request.groups)
    os.setresgid(request.gid, request.gid, request.gid)
    os.setresuid(request.uid, request.uid, request.uid)
    # Without it, a process that has changed its uid cannot read its own /proc/self.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.chdir(request.cwd)
    random.seed()


def _runtime_dir(uid: int, gid: int) -> str:
    """Make the user's runtime directory, unless another command has; return its path."""
    path = RUNTIME_DIRS / str(uid)
    path.mkdir(mode=0o700, exist_ok=True)
    os.chown(path, uid, gid)  # another command may have made it, but not called chown yet
    return str(path)


def _reopen_streams() -> None:
    """Open the standard streams as a new interpreter does."""
    sys.stdin = _stream(0, "r", line_buffering=False)
    sys.stdout = _stream(1, "w", line_buffering=os.isatty(1))
    sys.stderr = _stream(2, "w", line_buffering=True)


def _stream(fd: int, mode: str, *, line_buffering: bool) -> TextIO:
    raw = os.fdopen(fd, f"{mode}b", closefd=False)
    errors = "backslashreplace" if fd == 2 else "strict"
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=line_buffering)


def _start(request: CommandRequest) -> int:
    """Run the command in this interpreter and return its exit code, or execute it."""
    argv = request.argv
    paths = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    if argv[0] == "pyvmm":
        sys.argv = list(argv)
        module = importlib.import_module(ENTRY[0])
        result = getattr(module, ENTRY[1])(owns_process=True)
        return int(result or 0)
    if argv[0] == "python3" and len(argv) > 2 and argv[1] == "-m":
        sys.argv = [argv[2], *argv[3:]]
        sys.path[:0] = [request.cwd]
        sys.path += [p for p in paths if p]
        sys.modules.pop(argv[2], None)  # runpy warns about a module that is imported already
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join([LIBRARY, *(p for p in paths if p)])
    os.execvp(argv[0], argv)


def _code(end: SystemExit) -> int:
    """Return the exit code of a SystemExit, as the interpreter does."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(printable(str(end.code)), file=sys.stderr)
    return 1
