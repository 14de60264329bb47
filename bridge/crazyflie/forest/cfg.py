"""Settings of the task ``crazyflie_forest``. Every field can be overridden as ``env.<path>=<value>``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bridge.crazyflie.cfg import RandomizationCfg, SensorCfg
from bridge.errors import SettingError

CAMERAS = ("tof", "depth", "none")
"""What the student may see with."""
NEAREST = 8
"""Columns that the teacher knows of."""
SENSED = (
    ("goal", 3, "m"),
    ("velocity", 3, "m/s"),
    ("up", 3, "1"),
    ("body_rates", 3, "rad/s"),
    ("heading", 2, "1"),
    ("height", 1, "m"),
    ("previous_command", 4, "-1..1"),
)
"""Parts of the student's observation in order: name, size, unit. The teacher's begins with them."""
KNOWN = (("lateral_position", 1, "m"), ("columns", 3 * NEAREST, "1/m, 1/m, m"))
"""What follows them in the teacher's."""
COMMANDS = ("forward_velocity", "left_velocity", "up_velocity", "yaw_rate")
"""Order of the actions."""
CLEARING = 2.0
"""Length of the hall without columns at either end, m."""
DENSEST = 0.5
"""The share of the forest's floor that columns, each with half a gap around it, may cover: placed at random, discs that
do not overlap cover 0.547 at most (Feder, "Random sequential adsorption", 1980)."""


@dataclass
class ForestCfg:
    """The hall, its columns, and where episodes begin and end."""

    obstacles: int = 18
    """Number of columns; 0 is an empty hall. One that finds no place is left out."""
    min_radius: float = 0.15
    """Radii are drawn from [min_radius, max_radius], m."""
    max_radius: float = 0.35
    """See ``min_radius``."""
    gap: float = 0.8
    """Least distance between the surfaces of two columns, m. The craft fits through every gap, so that every forest has
    a way through."""
    length: float = 14.0
    """Of the hall, m; the columns leave 2 m free at either end."""
    width: float = 6.0
    """Of the hall, m."""
    height: float = 2.5
    """Of the hall and all columns, m."""
    goal_radius: float = 0.5
    """Of the ball that is the goal, m."""

    @property
    def area(self) -> float:
        """Of the floor on which columns stand, m^2."""
        return (self.length - 2 * CLEARING) * self.width


@dataclass
class ImageCfg:
    """How well the camera sees."""

    rate_hz: int = 15
    """Pictures per second; between two of them the last one is held."""
    noise: float = 0.03
    """Standard deviation of a distance, relative to it, white in space and time."""
    dropout: float = 0.02
    """Share of the pixels, drawn anew in every picture, that see nothing."""


@dataclass
class PilotCfg:
    """The craft's own controller, which flies the commands, and what these mean at their largest."""

    speed: float = 2.0
    """Velocity forward and to the left, m/s."""
    climb: float = 1.0
    """Velocity upwards, m/s."""
    yaw_rate: float = 2.5
    """rad/s."""
    max_tilt: float = 30.0
    """Tilt that it uses to change the velocity, degrees."""
    velocity_gain: float = 2.5
    """Acceleration per error of the velocity, 1/s."""
    attitude_gain: float = 6.0
    """Body rate per error of the attitude, 1/s."""
    rate_gain: float = 15.0
    """Angular acceleration per error of the body rate, 1/s."""


@dataclass
class ForestRewardCfg:
    """Weights of the reward terms."""

    progress: float = 1.0
    """Times the distance by which the goal came closer in a step, m."""
    goal: float = 10.0
    """Added once at the goal."""
    crash: float = 10.0
    """Subtracted once when something is hit."""
    action_change: float = 0.02
    """Times the norm of the change of the action, per step."""


@dataclass
class ForestFlightCfg:
    """Flight of a Crazyflie through a forest of columns to a goal behind it."""

    drone: str = "cf21B_500"
    """Crazyflow's name of the airframe."""
    num_envs: int = 100
    """Number of environments; ``--num_envs`` sets it."""
    episode_length_s: float = 20.0
    """Length of an episode, s."""
    physics_freq: int = 300
    """Physics steps per second; a multiple of ``policy_freq``."""
    policy_freq: int = 30
    """Control steps per second."""
    camera: str = "tof"
    """What the student sees with: ``tof`` (8 x 8 zones, 45 degrees, 4 m), ``depth`` (60 x 100 pixels, 58 by 87 degrees,
    6 m) or ``none``. The observation group has its name."""
    forest: ForestCfg = field(default_factory=ForestCfg)
    """The hall and its columns."""
    image: ImageCfg = field(default_factory=ImageCfg)
    """How well the camera sees."""
    pilot: PilotCfg = field(default_factory=PilotCfg)
    """The controller that flies the commands."""
    reward: ForestRewardCfg = field(default_factory=ForestRewardCfg)
    """Weights of the reward terms."""
    randomization: RandomizationCfg = field(
        default_factory=lambda: RandomizationCfg(mass=0.03, inertia=0.05, thrust=0.03, motor=0.05)
    )
    """Ranges of the physical parameters, unknown to the controller."""
    sensor: SensorCfg = field(
        default_factory=lambda: SensorCfg(position_noise=0.01, velocity_noise=0.03, attitude_noise=0.5, rate_noise=0.03)
    )
    """Noise and delay of the estimate that the student has of its own state."""

    def validate(self) -> None:
        """Raise :class:`SettingError` with one line that names the first setting that makes no sense."""
        if self.camera not in CAMERAS:
            raise SettingError(f"env.camera={self.camera!r}: expected one of {', '.join(CAMERAS)}")
        if self.num_envs < 1:
            raise SettingError(f"env.num_envs={self.num_envs}: expected a positive number")
        if self.policy_freq < 1 or self.physics_freq < 1 or self.physics_freq % self.policy_freq:
            raise SettingError(
                f"env.physics_freq={self.physics_freq}: expected a multiple of env.policy_freq={self.policy_freq}"
            )
        if not 1 <= self.episode_length_s * self.policy_freq < 2**31:
            raise SettingError(f"env.episode_length_s={self.episode_length_s}: expected at least one control step")
        if self.image.rate_hz < 1:
            raise SettingError(f"env.image.rate_hz={self.image.rate_hz}: expected a positive number")
        if not 0 <= self.sensor.delay_steps <= self.policy_freq:
            raise SettingError(
                f"env.sensor.delay_steps={self.sensor.delay_steps}: expected 0 to {self.policy_freq}, a second"
            )
        self._validate_ranges()
        self._validate_forest()

    def _validate_ranges(self) -> None:
        for section in ("image", "pilot", "sensor"):
            for name, value in vars(getattr(self, section)).items():
                if not 0 <= value < math.inf:
                    raise SettingError(f"env.{section}.{name}={value}: expected a number that is not negative")
        for name, width in vars(self.randomization).items():
            if not 0 <= width < 1:
                raise SettingError(f"env.randomization.{name}={width}: expected a number in [0, 1)")
        if self.image.dropout > 1:
            raise SettingError(f"env.image.dropout={self.image.dropout}: expected a number in [0, 1]")
        if not 0 < self.pilot.max_tilt < 80:
            raise SettingError(f"env.pilot.max_tilt={self.pilot.max_tilt}: expected a number between 0 and 80")

    def _validate_forest(self) -> None:
        forest = self.forest
        for name, value in vars(forest).items():
            if value < 0 or (value == 0 and name != "obstacles"):
                raise SettingError(f"env.forest.{name}={value}: expected a positive number")
        if forest.min_radius > forest.max_radius:
            raise SettingError(
                f"env.forest.min_radius={forest.min_radius}: is more than env.forest.max_radius={forest.max_radius}"
            )
        if forest.gap < 0.3:
            raise SettingError(f"env.forest.gap={forest.gap}: expected at least 0.3 m, which the craft fits through")
        for name, least in (("length", 2 * CLEARING + 1), ("width", 2.0), ("height", 1.5)):
            if getattr(forest, name) < least:
                raise SettingError(f"env.forest.{name}={getattr(forest, name)}: expected at least {least:g} m")
        if forest.obstacles > (most := most_columns(forest)):
            raise SettingError(
                f"env.forest.obstacles={forest.obstacles}: at most {most} fit into {forest.area:g} m^2 with gaps of "
                f"{forest.gap:g} m; make env.forest.length or width larger"
            )


def most_columns(forest: ForestCfg) -> int:
    """How many columns find a place: see :data:`DENSEST`. The mean of (r + gap / 2)^2 over uniform radii."""
    low, high = forest.min_radius + forest.gap / 2, forest.max_radius + forest.gap / 2
    return int(DENSEST * forest.area / (math.pi * (low * low + low * high + high * high) / 3))
