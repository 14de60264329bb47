"""Policies in and out of files: our own format, rsl_rl's checkpoints, ONNX, TorchScript, RAPTOR."""
