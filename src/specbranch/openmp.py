"""How long idle threads of libgomp, which `torch` computes with on Linux, spin before they sleep.

By default that is longer than a short forward, on a core that the other executor works on
meanwhile:
drafting in turn on two cores is then slowed by a third.
"""

from __future__ import annotations

import os
import sys

SPINNING = {"GOMP_SPINCOUNT": "10000"}  # through a forward, not beyond it


def limit_spinning() -> None:
    """Have this process's threads spin no longer, unless its environment says how long.

    Without effect once `torch` is imported: libgomp reads its environment when it is loaded.
    """
    if "torch" not in sys.modules:
        for name, value in SPINNING.items():
            os.environ.setdefault(name, value)
