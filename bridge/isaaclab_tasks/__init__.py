"""Tasks for Isaac Lab. Importing this package registers them with Gymnasium, as importing ``isaaclab_tasks`` does."""

from bridge.isaaclab_tasks import point_control as point_control
