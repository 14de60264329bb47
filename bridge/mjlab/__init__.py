"""mjlab behind the one interface. It speaks Isaac Lab's API on MuJoCo Warp, so :mod:`bridge.isaaclab.env` wraps it."""
