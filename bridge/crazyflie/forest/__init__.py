"""Flight of a Crazyflie through a forest of columns, with eyes: a time-of-flight sensor or a depth camera."""
