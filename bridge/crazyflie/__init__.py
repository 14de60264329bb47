"""Point control of a Crazyflie on Crazyflow: the embedded simulator, in JAX."""

from bridge.crazyflie.cfg import PointControlCfg
from bridge.crazyflie.task import PhysicalState, PointControl

__all__ = ["PhysicalState", "PointControl", "PointControlCfg"]
