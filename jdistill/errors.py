"""What can go wrong in a way that the user can mend; see :class:`bridge.errors.UserError`."""

from __future__ import annotations

from bridge.errors import RenderError, SettingError, SimulatorError, UserError, nearest

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "ExportError",
    "ObservationError",
    "PolicyFileError",
    "RenderError",
    "ReportError",
    "SettingError",
    "SimulatorError",
    "TrainingError",
    "UserError",
    "nearest",
]


class ConfigError(SettingError):
    """A setting that cannot be used; the message says which and why."""


class ObservationError(ConfigError):
    """An entry of ``agent.obs_groups`` that names no observation that a policy could take."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or does not fit."""


class DatasetError(UserError):
    """A dataset that cannot be written or read."""


class PolicyFileError(UserError):
    """A policy file that cannot be used."""


class ExportError(UserError):
    """An export that cannot be made, or whose actions are not the original's."""


class ReportError(UserError):
    """No report can be written."""


class TrainingError(UserError):
    """Training cannot go on; the message says why and what is kept."""
