"""Point control of a Crazyflie on Crazyflow: the embedded simulator, in JAX."""

from typing import TYPE_CHECKING, Any

from bridge.crazyflie.cfg import PointControlCfg

if TYPE_CHECKING:
    from bridge.crazyflie.task import PhysicalState, PointControl

__all__ = ["PhysicalState", "PointControl", "PointControlCfg"]


def __getattr__(name: str) -> Any:
    # The settings are shared with the task's twin on Isaac Lab, which must not bring JAX along.
    if name in ("PhysicalState", "PointControl"):
        from bridge.crazyflie import task

        return getattr(task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
