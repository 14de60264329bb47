"""Isaac Lab as a back end. Importing this needs no Isaac Lab."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.isaaclab.cfg import PREFIXES, IsaacLabCfg, QuadrotorsCfg
from bridge.overrides import separate
from bridge.tasks import Launch, Request, Session, Simulator, Task, UnknownTaskError

if TYPE_CHECKING:
    from bridge.env import TrainingEnv

POINT_CONTROL = "Jdistill-PointControl-Direct"
"""The built-in task ``crazyflie`` on this simulator."""


class IsaacLab(Simulator):
    """Every task that is registered with Isaac Lab, by Isaac Lab's names, flags and overrides."""

    name = "isaaclab"
    title = "Isaac Lab"
    package = "isaaclab"
    extra = "isaaclab"
    packages = ("isaaclab", "mujoco", "torch")
    is_jax = False
    shares_gpu = True
    records_video = True
    open_ended = True
    flags = ("--viz", "--external_callback", "--agent")
    cfg_cls = IsaacLabCfg
    twins: ClassVar = {"crazyflie": POINT_CONTROL, "distillation": POINT_CONTROL}

    def claims(self, request: Request) -> bool:
        """Settings of ``env.robot`` exist here only, and an external package's ``distillation`` wins over ours."""
        if request.task not in self.twins:
            return request.task in self.task_names()
        if any(o.startswith("env.robot.") for o in request.overrides):
            return True
        return request.task == "distillation" and _is_external(request.task, request.flags)

    def task_names(self) -> Sequence[str]:
        """Our own; the others are known to Isaac Lab alone."""
        return [POINT_CONTROL]

    def separate(
        self, sections: Sequence[Mapping[str, Any]], overrides: Sequence[str]
    ) -> tuple[list[Mapping[str, Any]], list[str]]:
        """All but the number of environments becomes an override in Isaac Lab's words, in order."""
        return separate(IsaacLabCfg, PREFIXES, sections, overrides)

    def drawing_flags(self, flags: Sequence[str]) -> list[str]:
        """The visualizer that draws without Isaac Sim and without a display, unless one is named."""
        return [] if any(flag.startswith(("--viz", "--visualizer")) for flag in flags) else ["--viz", "newton_gl"]

    def parse_flags(self, argv: Sequence[str], device: str | None) -> Launch:
        """See :func:`bridge.isaaclab.launch.parse_flags`."""
        from bridge.isaaclab.launch import parse_flags

        options, rest = parse_flags(argv, device and device.partition(":")[0].replace("gpu", "cuda"))
        return Launch(options, rest, options.device)

    def load(self, name: str, options: Any) -> Task:
        """A registered task; for one of the built-in names, the task registered under it, else its twin."""
        from bridge.isaaclab import agent, launch

        if not launch.has_task(name):
            if name not in self.twins:
                raise UnknownTaskError(name, launch.task_names())
            name = self.twins[name]

        @contextmanager
        def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
            details = session.seed, session.groups, session.mode, session.video_dir, session.parts, session.part
            with launch.open_env(name, cfg, options, *details) as env:
                yield env

        if name != POINT_CONTROL:
            return Task(name, IsaacLabCfg, open_env, agent.agent_defaults(name, options.agent))
        return Task(
            name,
            QuadrotorsCfg,
            open_env,
            {"obs_groups": {"student": ["policy"]}},
            preset="crazyflie",
            teacher=lambda cfg: "crazyflie",
            old_teacher_output_activation="tanh",
            main_metric="position_error",
        )


def _is_external(name: str, flags: Sequence[str]) -> bool:
    """Whether another package has registered ``name``, or is about to."""
    if importlib.util.find_spec("isaaclab") is None:
        return False
    import gymnasium  # Registers what installed packages announce as Gymnasium plug-ins.

    return name in gymnasium.registry or any(flag.startswith("--external_callback") for flag in flags)
