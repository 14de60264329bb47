"""Point control of a Crazyflie on Isaac Lab: the task of :mod:`bridge.crazyflie` as a ``DirectRLEnv`` on Newton."""

import gymnasium as gym

TASK_ID = "Jdistill-PointControl-Direct"
"""The task's name in Gymnasium's registry; as Isaac Lab 3.0's own names, it carries no version."""

gym.register(
    id=TASK_ID,
    entry_point=f"{__name__}.env:PointControlEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": f"{__name__}.cfg:PointControlEnvCfg"},
)
