"""Simulators behind one Brax-style interface; see :mod:`bridge.env`."""

import os

# Crazyflow computes rotations through SciPy's array API, which SciPy switches on, or not, when it is first imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
