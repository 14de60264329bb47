"""A training run: settings, the loop and its callbacks, checkpoints, the run folder."""
