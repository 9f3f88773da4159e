"""``python -m pyvmm``: the command where no script is on the PATH."""

from __future__ import annotations

import sys

from pyvmm.entry import main

sys.exit(main())
