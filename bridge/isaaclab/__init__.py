"""Isaac Lab behind the one interface: ``env`` wraps a running environment, ``launch`` starts one by a task's name."""
