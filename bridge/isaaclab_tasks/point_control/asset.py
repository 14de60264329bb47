"""The craft as one rigid body, whatever USD file it comes from."""

from __future__ import annotations

from typing import Any

import isaaclab.sim as sim_utils
from isaaclab.sim.utils import clone
from pxr import Gf, Usd, UsdPhysics

from bridge.crazyflie.airframe import Airframe
from bridge.isaaclab_tasks.point_control.cfg import CRAZYFLIE_USD, CraftFileCfg


@clone
def spawn_craft(
    prim_path: str,
    cfg: CraftFileCfg,
    translation: tuple[float, float, float] | None = None,
    orientation: tuple[float, float, float, float] | None = None,
    **kwargs: Any,
) -> Usd.Prim:
    """Spawn a USD file and weld it into one rigid body; the arguments are those of Isaac Lab's spawners.

    Propellers on joints become part of the body: their spin and inertia belong to the motor model already. The mass is
    the asset's; an asset without one, and the one that comes with the task, take mass and inertia of ``cfg.drone``.
    """
    root = sim_utils.spawn_from_usd(prim_path, cfg, translation, orientation, **kwargs)
    airframe = Airframe.load(cfg.drone)
    bodies = [prim for prim in Usd.PrimRange(root) if prim.HasAPI(UsdPhysics.RigidBodyAPI)]
    masses = [UsdPhysics.MassAPI(prim).GetMassAttr().Get() or 0.0 for prim in bodies]
    mass = sum(masses) if all(m > 0 for m in masses) else 0.0
    if cfg.usd_path == CRAZYFLIE_USD or not mass:
        mass = airframe.mass
    elif len(bodies) == 1:
        return root
    _weld(root)
    body = bodies[0] if len(bodies) == 1 else root
    UsdPhysics.RigidBodyAPI.Apply(body)
    properties = UsdPhysics.MassAPI.Apply(body)
    properties.CreateMassAttr(mass)
    properties.CreateCenterOfMassAttr(Gf.Vec3f(0.0))
    # Of several bodies the parts' inertia says little about the whole, so the airframe lends its proportions.
    properties.CreateDiagonalInertiaAttr(Gf.Vec3f(*(row[i] * mass / airframe.mass for i, row in enumerate(airframe.J))))
    properties.CreatePrincipalAxesAttr(Gf.Quatf(1.0))
    return root


def _weld(root: Usd.Prim) -> None:
    """Take joints, articulation and bodies away from everything under ``root``."""
    for prim in list(Usd.PrimRange(root)):
        if prim.IsA(UsdPhysics.Joint):
            prim.SetActive(False)
            continue
        for api in (UsdPhysics.ArticulationRootAPI, UsdPhysics.RigidBodyAPI, UsdPhysics.MassAPI):
            if prim.HasAPI(api):
                prim.RemoveAPI(api)
