"""The C extension, for arm64 only; everything else about the build is in pyproject.toml."""

import sys
import sysconfig
from pathlib import Path

from setuptools import setup

if sysconfig.get_platform().endswith("-aarch64"):
    sys.path.insert(0, str(Path(__file__).parent))
    from pyvmm.kvm._build import extension

    # One wheel for Python 3.11 and later.
    setup(ext_modules=[extension()], options={"bdist_wheel": {"py_limited_api": "cp311"}})
else:
    setup()
