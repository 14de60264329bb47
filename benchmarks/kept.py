"""Teachers that take an hour are trained once, and looked at as often as one likes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def kept_teacher(folder: Path, settings: Mapping[str, Any], train: Callable[[Path], Path]) -> tuple[Path, float]:
    """The checkpoint that ``train`` made in ``folder``, now or earlier with the same settings, and its minutes."""
    note, said = folder / "teacher.json", json.loads(json.dumps(settings))
    if note.is_file() and (found := json.loads(note.read_text()))["settings"] == said:
        return folder / found["checkpoint"], found["minutes"]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    checkpoint = train(folder)
    minutes = (time.perf_counter() - began) / 60
    found = {"settings": said, "checkpoint": str(checkpoint.relative_to(folder)), "minutes": minutes}
    note.write_text(json.dumps(found, indent=1) + "\n")
    return checkpoint, minutes
