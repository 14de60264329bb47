"""Policies in and out of files: our own format, rsl_rl's checkpoints, ONNX, TorchScript, RAPTOR.

:mod:`~jdistill.export.layers` describes a policy as plain data for all of them, :mod:`~jdistill.export.formats` lists
what a student can be exported as.
"""
