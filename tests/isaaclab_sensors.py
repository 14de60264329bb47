"""A task for Isaac Lab with a camera and a ray caster: its own cartpole above a stepped ground."""

from __future__ import annotations

import gymnasium as gym
from isaaclab.managers import ObservationGroupCfg, ObservationTermCfg, SceneEntityCfg
from isaaclab.sensors import RayCasterCfg, patterns
from isaaclab.terrains import MeshPyramidStairsTerrainCfg, TerrainGeneratorCfg, TerrainImporterCfg
from isaaclab.utils import configclass
from isaaclab_tasks.core.cartpole import mdp
from isaaclab_tasks.core.cartpole.cartpole_manager_camera_env_cfg import (
    CartpoleCameraEnvCfg,
    CartpoleCameraSceneCfg,
    image_observations_cfg,
)

TASK = "Test-Cartpole-Sensors"
RAYS, SIZE = 5, 16
"""Rays along the rails, 0.5 m apart, and pixels of a row."""
STAIRS = MeshPyramidStairsTerrainCfg(step_height_range=(0.2, 0.2), step_width=0.5, platform_width=1.0)


@configclass
class SceneCfg(CartpoleCameraSceneCfg):
    """The rays begin above the cart and go down, wherever it is."""

    terrain = TerrainImporterCfg(
        prim_path="/World/stairs",
        terrain_type="generator",
        terrain_generator=TerrainGeneratorCfg(size=(6.0, 6.0), num_rows=1, num_cols=1, sub_terrains={"stairs": STAIRS}),
        visual_material=None,
    )
    scanner = RayCasterCfg(
        prim_path="{ENV_REGEX_NS}/Robot/cart",
        offset=RayCasterCfg.OffsetCfg(pos=(0.0, 0.0, 5.0)),
        ray_alignment="yaw",
        pattern_cfg=patterns.GridPatternCfg(resolution=0.5, size=(0.0, 2.0)),
        mesh_prim_paths=["/World/stairs"],
        global_world_only=True,  # Else Newton's rays end at the cart.
    )


@configclass
class ScanCfg(ObservationGroupCfg):
    """How far the ground is below the cart, in m."""

    height_scan = ObservationTermCfg(
        func=mdp.height_scan, params={"sensor_cfg": SceneEntityCfg("scanner"), "offset": 0.0}
    )


@configclass
class ObservationsCfg:
    """``policy`` is a depth image (2, 16, 16), ``critic`` the four numbers of a cartpole."""

    policy: ObservationGroupCfg = image_observations_cfg("depth").policy
    critic: ObservationGroupCfg = image_observations_cfg("depth").critic
    scan: ObservationGroupCfg = ScanCfg()


@configclass
class EnvCfg(CartpoleCameraEnvCfg.BaseCartpoleCameraEnvCfg):
    """All environments stand on one flight of stairs."""

    scene: SceneCfg = SceneCfg(num_envs=2, env_spacing=0.0)
    observations: ObservationsCfg = ObservationsCfg()

    def __post_init__(self):
        super().__post_init__()
        camera = self.scene.tiled_camera.depth
        camera.width = camera.height = SIZE
        self.scene.tiled_camera = camera


gym.register(
    id=TASK,
    entry_point="isaaclab.envs:ManagerBasedRLEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": f"{__name__}:EnvCfg"},
)
