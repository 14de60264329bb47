"""Simulators behind one Brax-style interface; see :mod:`bridge.env`."""

import os
import sys

SCIPY_WITHOUT_ARRAY_API = "scipy" in sys.modules and os.environ.get("SCIPY_ARRAY_API") != "1"
"""Crazyflow computes rotations through SciPy's array API, which SciPy switches on, or not, at its first import."""
os.environ["SCIPY_ARRAY_API"] = "1"
