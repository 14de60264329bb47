"""Simulators behind one Brax-style interface; see :mod:`bridge.env`."""
