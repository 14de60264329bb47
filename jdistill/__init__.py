"""Two-stage teacher-student distillation for robot learning as one compiled JAX program."""

__version__ = "0.1.0"
