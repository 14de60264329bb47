"""These tests run where mjlab is: in the environment that ``tests/test_mjlab.py`` makes, or in a user's."""

import importlib.util

if importlib.util.find_spec("mjlab"):
    collect_ignore_glob = []
    import warp

    warp.config.optimization_level = 0  # Its kernels run for seconds, and compile for half a minute.
else:
    collect_ignore_glob = ["test_*.py"]
