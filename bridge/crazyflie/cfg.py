"""Settings of the point-control task. Every field can be overridden as ``env.<path>=<value>``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bridge.errors import SettingError

PREVIOUS = "previous_motor_commands"
OBSERVATION = (
    ("position_error", 3, "m"),
    ("velocity_error", 3, "m/s"),
    ("rotation_matrix", 9, "1"),
    ("body_rates", 3, "rad/s"),
    (PREVIOUS, 4, "0..1"),
    ("rotor_speeds", 4, "0..1"),
)
"""Parts of the teacher's observation in order: name, size, unit. The student's ends before the rotor speeds."""
PHYSICS = (
    ("hover_command", 1, "0..1"),
    ("thrust_to_weight", 1, "1"),
    ("roll_acceleration", 1, "rad/s^2"),
    ("motor_rate", 1, "1/s"),
)
"""What follows them with ``teacher_sees_physics``: this episode's physical parameters as a policy feels them."""
MOTORS = ("front_right", "back_right", "back_left", "front_left")
"""Order of the motor commands."""
ACTIONS = ("motors", "ctbr")
"""What an action may be: motor commands, or collective thrust and body rates."""
TARGETS = ("mixed", "fixed", "langevin", "figure_eight", "step")
"""Kinds of targets."""
ASSIGNMENTS = ("cycle", "random")
"""Ways to share quadrotors out among environments."""
ORIENTATION_COSTS = ("tilt", "quaternion")
"""What the reward counts as the orientation's cost."""


@dataclass
class TargetCfg:
    """The point to be held or followed."""

    kind: str = "mixed"
    """``mixed`` (a share ``fixed_fraction`` of the episodes holds a point, the rest follows a Langevin path),
    ``fixed``, ``langevin``, ``figure_eight`` or ``step``."""
    fixed_fraction: float = 0.5
    """Share of the episodes with a resting target when ``kind`` is ``mixed``."""
    damping: float = 0.5
    """Langevin: velocity damping, 1/s."""
    omega: float = 1.5
    """Langevin: natural frequency of the pull back to the origin, rad/s."""
    sigma: float = 0.75
    """Langevin: strength of the velocity noise, m/s per square root of a second."""
    smoothing: float = 0.2
    """Langevin: weight of the newest sample in the exponential smoothing of the path, per step."""
    min_speed_limit: float = 0.5
    """Langevin: the speed limit of an episode is drawn from [min_speed_limit, max_speed_limit], m/s."""
    max_speed_limit: float = 1.5
    """Langevin: see ``min_speed_limit``."""
    figure_eight_size: float = 1.0
    """Half the length of the figure-eight along x, m; it is half as wide along y."""
    figure_eight_period: float = 6.0
    """Seconds for one figure-eight."""
    step_size: float = 1.0
    """Step: radius of the ball around the spawn point in which each next point lies, m."""
    step_interval: float = 3.0
    """Step: seconds from one jump of the target to the next."""


@dataclass
class ResetCfg:
    """Where episodes begin, relative to the target's start."""

    position: float = 10.0
    """Radius of the ball of start positions, in arm lengths."""
    linear_velocity: float = 1.0
    """Radius of the ball of start velocities, m/s."""
    angular_velocity: float = 1.0
    """Radius of the ball of start body rates, rad/s."""
    tilt: float = 45.0
    """Roll and pitch are drawn from [-tilt, tilt], degrees."""
    yaw: float = 180.0
    """Yaw is drawn from [-yaw, yaw], degrees."""
    on_target_fraction: float = 0.1
    """Share of the episodes that begin at rest and level exactly on the target."""


@dataclass
class TerminationCfg:
    """Limits that end an episode."""

    max_distance: float = 15.0
    """Distance from the spawn point, m."""
    max_linear_velocity: float = 4.0
    """Any component of the linear velocity, m/s."""
    max_body_rate: float = 35.0
    """Any component of the body rate, rad/s."""
    max_tilt: float = 90.0
    """Angle between the body's and the world's vertical, degrees."""


@dataclass
class RewardCfg:
    """Weights of the reward terms, per step."""

    alive: float = 1.5
    """Added every step."""
    position: float = 1.0
    """Times the distance to the target, m."""
    orientation: float = 0.5
    """Times ``1 - cos(tilt)``, or what ``orientation_cost`` says."""
    orientation_cost: str = "tilt"
    """``tilt``: ``1 - cos(tilt)``; ``quaternion``: ``arccos(1 - |z|)`` with the quaternion's z, as in the fork that the
    task comes from, which punishes the heading and hardly the tilt."""
    action_change: float = 0.1
    """Times the norm of the change of the motor commands (0..1)."""
    termination: float = 100.0
    """Subtracted once when a limit ends the episode."""


@dataclass
class RandomizationCfg:
    """Half-widths of uniform ranges around the nominal value, relative; drawn per environment at each reset."""

    mass: float = 0.01
    """0.1 means a mass between 90 % and 110 % of the nominal one."""
    inertia: float = 0.01
    """All axes together."""
    thrust: float = 0.01
    """Thrust per rotor speed squared, all motors together."""
    motor: float = 0.01
    """Motor rate constants (the inverse of the motor's time constant)."""


@dataclass
class WindCfg:
    """Pushes from the side: a pause, then a gust, then a pause again."""

    force: float = 0.0
    """Force of the strongest gust, in weights of the nominal craft; 0 switches wind off. Every gust has a horizontal
    direction of its own and a force from [0, force]."""
    gust_s: float = 0.5
    """Length of a gust, s."""
    pause_s: float = 1.5
    """Calm before each gust, s."""


@dataclass
class SensorCfg:
    """How well the student's sensors measure the craft; the teacher always sees the truth.

    Noise is white and Gaussian, drawn anew every control step, and given as the standard deviation of each component.
    """

    position_noise: float = 0.0
    """m"""
    velocity_noise: float = 0.0
    """m/s"""
    attitude_noise: float = 0.0
    """Degrees, of a small rotation about each body axis."""
    rate_noise: float = 0.0
    """rad/s"""
    delay_steps: int = 0
    """Control steps after which a measurement reaches the student. What it commands itself it knows at once. Until the
    first one arrives it sees how the episode began."""
    random_delay: bool = False
    """Whether every episode draws its delay from 0, 1, ... ``delay_steps``."""

    @property
    def is_perfect(self) -> bool:
        """Whether the student sees the truth at once."""
        return not any(value for name, value in vars(self).items() if name != "random_delay")


@dataclass
class RateControllerCfg:
    """The controller in the craft that holds the body rates which ``action=ctbr`` asks for."""

    max_rate: float = 10.0
    """Roll and pitch rate of the largest action, rad/s."""
    max_yaw_rate: float = 4.0
    """Yaw rate of the largest action, rad/s."""
    bandwidth: float = 20.0
    """How fast roll and pitch rate answer, 1/s, see :class:`bridge.crazyflie.commands.ThrustAndRates`."""
    yaw_bandwidth: float = 8.0
    """The same of the yaw rate, whose torque is a small one."""


@dataclass
class PointControlCfg:
    """Point control of a Crazyflie on the Crazyflow simulator."""

    drone: str = "cf2x_L250"
    """Crazyflow's name of the airframe, or ``foundation``, that of the fork which the task comes from."""
    quadrotors: str = ""
    """CSV file of quadrotors to be flown in place of ``drone``, see :mod:`bridge.quadrotors`; empty flies ``drone``."""
    quadrotor_assignment: str = "cycle"
    """Which of them an environment flies: ``cycle``, one after the other along the environments, the same in every
    episode; or ``random``, any, drawn anew at every reset."""
    num_envs: int = 100
    """Number of environments; ``--num_envs`` sets it."""
    episode_length_s: float = 10.0
    """Length of an episode, s."""
    physics_freq: int = 500
    """Physics steps per second; a multiple of ``policy_freq``."""
    policy_freq: int = 100
    """Control steps per second."""
    action: str = "motors"
    """What the actions are: ``motors``, the speed of each; or ``ctbr``, collective thrust and body rates, which a
    controller in the craft holds, as autopilots take them."""
    rate_controller: RateControllerCfg = field(default_factory=RateControllerCfg)
    """That controller."""
    frame: str = "body"
    """Frame of the student's position and velocity errors: ``body``, ``world``, or ``start``: the world frame turned
    about the vertical so that the episode begins with heading 0 (the rotation matrix is then relative to it too)."""
    teacher_frame: str = "body"
    """The same for the teacher; the bundled teacher was trained with ``body``."""
    teacher_sees_physics: bool = False
    """Whether the teacher's observation ends with the episode's physical parameters (``PHYSICS``, 4 numbers)."""
    target: TargetCfg = field(default_factory=TargetCfg)
    """The point to be held or followed."""
    reset: ResetCfg = field(default_factory=ResetCfg)
    """Where episodes begin."""
    termination: TerminationCfg = field(default_factory=TerminationCfg)
    """Limits that end an episode."""
    reward: RewardCfg = field(default_factory=RewardCfg)
    """Weights of the reward terms."""
    randomization: RandomizationCfg = field(default_factory=RandomizationCfg)
    """Ranges of the physical parameters."""
    wind: WindCfg = field(default_factory=WindCfg)
    """Pushes from the side; off."""
    sensor: SensorCfg = field(default_factory=SensorCfg)
    """Noise and delay of what the student sees; none."""

    def validate(self) -> None:
        """Raise :class:`SettingError` with one line that names the first setting that makes no sense."""
        if self.target.kind not in TARGETS:
            raise SettingError(f"env.target.kind={self.target.kind!r}: expected one of {', '.join(TARGETS)}")
        for name in ("frame", "teacher_frame"):
            if getattr(self, name) not in ("body", "world", "start"):
                raise SettingError(f"env.{name}={getattr(self, name)!r}: expected body, world or start")
        if self.quadrotor_assignment not in ASSIGNMENTS:
            known = ", ".join(ASSIGNMENTS)
            raise SettingError(f"env.quadrotor_assignment={self.quadrotor_assignment!r}: expected one of {known}")
        if self.action not in ACTIONS:
            raise SettingError(f"env.action={self.action!r}: expected one of {', '.join(ACTIONS)}")
        if self.reward.orientation_cost not in ORIENTATION_COSTS:
            known = ", ".join(ORIENTATION_COSTS)
            raise SettingError(f"env.reward.orientation_cost={self.reward.orientation_cost!r}: expected one of {known}")
        if self.num_envs < 1:
            raise SettingError(f"env.num_envs={self.num_envs}: expected a positive number")
        self._validate_times()
        self._validate_ranges()

    def _validate_times(self) -> None:
        if self.policy_freq < 1 or self.physics_freq < 1 or self.physics_freq % self.policy_freq:
            raise SettingError(
                f"env.physics_freq={self.physics_freq}: expected a multiple of env.policy_freq={self.policy_freq}"
            )
        if not 1 <= self.episode_length_s * self.policy_freq < 2**31:
            raise SettingError(f"env.episode_length_s={self.episode_length_s}: expected at least one control step")
        if not self.target.figure_eight_period > 0:
            raise SettingError(f"env.target.figure_eight_period={self.target.figure_eight_period}: must be positive")
        shortest = 1.0 / self.policy_freq
        for name, seconds in (("target.step_interval", self.target.step_interval), ("wind.gust_s", self.wind.gust_s)):
            if not shortest <= seconds < math.inf:
                raise SettingError(f"env.{name}={seconds}: expected at least one control step ({shortest:g} s)")
        if not 0 <= self.sensor.delay_steps <= self.policy_freq:
            raise SettingError(
                f"env.sensor.delay_steps={self.sensor.delay_steps}: expected 0 to {self.policy_freq}, a second"
            )

    def _validate_ranges(self) -> None:
        for section in ("target", "reset", "termination", "wind", "sensor"):
            for name, value in vars(getattr(self, section)).items():
                if not isinstance(value, str) and not 0 <= value < math.inf:
                    raise SettingError(f"env.{section}.{name}={value}: expected a number that is not negative")
        for name, width in vars(self.randomization).items():
            if not 0 <= width < 1:
                raise SettingError(f"env.randomization.{name}={width}: expected a number in [0, 1)")
        for name, value in vars(self.rate_controller).items():
            if not 0 < value < math.inf:
                raise SettingError(f"env.rate_controller.{name}={value}: expected a positive number")
        shares = {
            "target.fixed_fraction": self.target.fixed_fraction,
            "target.smoothing": self.target.smoothing,
            "reset.on_target_fraction": self.reset.on_target_fraction,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise SettingError(f"env.{name}={share}: expected a number in [0, 1]")
        if not 0 <= self.target.min_speed_limit <= self.target.max_speed_limit:
            raise SettingError(
                f"env.target.min_speed_limit={self.target.min_speed_limit}: expected a number between 0 and "
                f"env.target.max_speed_limit={self.target.max_speed_limit}"
            )
