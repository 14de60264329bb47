"""The algorithm: pure functions over pytrees. Imports the environment interface and nothing else of ours."""
