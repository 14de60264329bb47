"""Recorded episodes: written beside the training, read back as a history."""
