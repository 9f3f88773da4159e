"""The files of a package that a build makes: a clone lacks them, pyproject.toml cannot list them.

A wheel and an sdist hold the guests (ELF files), the programs of an arm64 host, the manual page and
the shells' completion.  On arm64 a wheel also holds the KVM extension.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
GCC = "aarch64-linux-gnu-gcc"
TOOLS = "build/tools"
SHARED = {  # path below the prefix: the arguments of `pyvmm` that print the file
    "share/man/man1/pyvmm.1": ["man"],
    "share/bash-completion/completions/pyvmm": ["completion", "bash"],
    "share/zsh/site-functions/_pyvmm": ["completion", "zsh"],
    "share/fish/vendor_completions.d/pyvmm.fish": ["completion", "fish"],
}


def make_contents() -> None:
    """Build the guests, the programs, the manual page and the completion in this tree.

    An sdist holds them, so that it installs without a cross compiler.
    """
    if (ROOT / "PKG-INFO").exists():
        return
    gcc = cross_gcc()
    for directory in ("guests", "programs"):
        run("make", "-s", "-C", directory, f"CC={gcc}", f"PYTHON={sys.executable}")
    for name, words in SHARED.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run(sys.executable, "-m", "pyvmm", *words))


def cross_gcc() -> str:
    """Return the compiler for arm64, installed or unpacked privately, for make in guests/.

    The path is relative, because make accepts no space in it.
    """
    if shutil.which(GCC):
        return GCC
    run(sys.executable, "-m", "pyvmm.host.parts.tools", TOOLS, GCC)
    return f"../{TOOLS}/{GCC}"


def run(*command: str) -> str:
    """Run a program in this tree and return its output; its failure ends the build."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
    }  # under pipx, Python does not search this directory
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        hint = f"apt-get install {command[0]}, or install a wheel"
        sys.exit(f"pyvmm: building the guests needs {command[0]}\n  hint: {hint}")
    if done.returncode:
        sys.exit(f"pyvmm: {' '.join(command)}: exit code {done.returncode}")
    return done.stdout


class BuildPy(build_py):
    """The package's files, with those that are built."""

    def run(self) -> None:
        """Build them first, and start from an empty directory.

        In an editable install, `make guests` builds them: a developer builds them often.
        """
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # removed modules
            make_contents()
            share(self.distribution)
        super().run()


class Sdist(sdist):
    """The sources, with what is built from them."""

    def run(self) -> None:
        """Build it first."""
        make_contents()
        share(self.distribution)
        super().run()


def share(distribution: Distribution) -> None:
    """Install the manual page and the completion below the prefix."""
    distribution.data_files = [(str(Path(name).parent), [name]) for name in SHARED]


commands = {"build_py": BuildPy, "sdist": Sdist}
if sysconfig.get_platform().endswith("-aarch64"):
    sys.path.insert(0, str(ROOT))
    from pyvmm.kvm._build import extension

    # One wheel for Python 3.11 and later.
    setup(
        cmdclass=commands,
        ext_modules=[extension()],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
else:
    setup(cmdclass=commands)
