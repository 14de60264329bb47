"""Where a run's scalars go: into ``progress.csv`` always, and to TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from jdistill.core.config import AgentCfg
from jdistill.errors import ConfigError
from jdistill.run.progress import ProgressWriter

VIDEO_TAG = "Video/student"


class Film(Protocol):
    """A film of the student."""

    @property
    def file(self) -> Path:
        """Where it is."""
        ...

    def gif(self) -> tuple[bytes, int, int]:
        """The film as a small GIF, with its height and width in pixels."""
        ...


class Writer(Protocol):
    """Takes scalars by tag."""

    def write(self, scalars: dict[str, float], iteration: int) -> None:
        """Record the scalars of one iteration."""
        ...

    def show(self, film: Film, iteration: int) -> None:
        """Show a film of the student after so many iterations."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class TensorBoardWriter:
    """Event files in the run folder."""

    def __init__(self, run_dir: Path, first: int):
        from tensorboardX import SummaryWriter

        # Iterations that a killed run logged after its last checkpoint are about to be run again.
        self._writer = SummaryWriter(logdir=str(run_dir), flush_secs=10, purge_step=first or None)

    def write(self, scalars: dict[str, float], iteration: int) -> None:
        """Record the scalars of one iteration."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, iteration)

    def show(self, film: Film, iteration: int) -> None:
        """A moving picture among TensorBoard's images, which a GIF in an image's place is."""
        from tensorboardX.proto.summary_pb2 import Summary

        data, height, width = film.gif()
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=VIDEO_TAG, image=image)]), iteration)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class WandbWriter:
    """A Weights & Biases run; with ``WANDB_MODE=offline`` it stays on disk until ``wandb sync``."""

    def __init__(self, run_dir: Path, cfg: AgentCfg, config: dict[str, Any]):
        import wandb

        try:
            # The folder's name identifies the run, so a resumed one goes on where it was.
            self._run = wandb.init(
                project=cfg.log_project_name,
                name=run_dir.name,
                id=f"{cfg.experiment_name}-{run_dir.name}",
                resume="allow",
                dir=str(run_dir),
                config=config,
            )
        except wandb.errors.Error as e:
            hint = "log in with 'wandb login' or set WANDB_MODE=offline"
            raise ConfigError(f"--logger wandb: {' '.join(str(e).split())}; {hint}") from e

    def write(self, scalars: dict[str, float], iteration: int) -> None:
        """Record the scalars of one iteration."""
        self._run.log(scalars, step=iteration)

    def show(self, film: Film, iteration: int) -> None:
        """The film itself, among W&B's media."""
        import wandb

        self._run.log({VIDEO_TAG: wandb.Video(str(film.file), format="mp4")}, step=iteration)

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


class Writers:
    """Several writers as one."""

    def __init__(self, *writers: Writer):
        self._writers = writers

    def write(self, scalars: dict[str, float], iteration: int) -> None:
        """Record the scalars of one iteration."""
        for writer in self._writers:
            writer.write(scalars, iteration)

    def show(self, film: Film, iteration: int) -> None:
        """Show a film of the student after so many iterations."""
        for writer in self._writers:
            writer.show(film, iteration)

    def close(self) -> None:
        """Flush and end."""
        for writer in self._writers:
            writer.close()


def check_logger(cfg: AgentCfg) -> None:
    """Raise :class:`ConfigError` if the logger's package is missing."""
    if cfg.logger == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError("--logger wandb: wandb is not installed; add it with 'uv run --extra wandb ...'")


def make_writer(run_dir: Path, cfg: AgentCfg, config: dict[str, Any], first: int) -> Writer:
    """``progress.csv`` and what ``cfg.logger`` names; ``config`` is stored with a wandb run, ``first`` is the first
    iteration."""
    progress = ProgressWriter(run_dir, first)
    if cfg.logger == "tensorboard":
        return Writers(progress, TensorBoardWriter(run_dir, first))
    if cfg.logger == "wandb":
        return Writers(progress, WandbWriter(run_dir, cfg, config))
    return progress
