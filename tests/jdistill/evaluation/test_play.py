"""Films, decoded again."""

from __future__ import annotations

import sys

import av
import jax
import numpy as np
import pytest
from PIL import Image

from bridge import mujoco_render
from bridge.crazyflie import PointControl
from bridge.env import AutoReset
from jdistill.cli.main import run_command
from jdistill.evaluation import play, video
from jdistill.run.inputs import load_teacher
from jdistill.run.progress import read_progress
from jdistill.run.runner import DistillationRunner
from tests.conftest import BUNDLED_TEACHER, small_cfg

SCENE = ["--scenario", "hover", "env.episode_length_s=0.6"]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Pixels cost time."""
    monkeypatch.setattr(play, "PANEL", 160)
    monkeypatch.setattr(video.Camera, "PANEL", 64)


def decoded(file) -> tuple[np.ndarray, float]:
    """Pictures (N, H, W, 3) and frames per second of an MP4."""
    with av.open(str(file)) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p", "what every player plays"
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)]), float(stream.average_rate)


def changes(pictures: np.ndarray) -> np.ndarray:
    """How much each picture differs from the one before, on average."""
    return np.abs(np.diff(pictures.astype(int), axis=0)).mean(axis=(1, 2, 3))


def test_an_mp4_of_both_policies(small_run, tmp_path, capsys):
    file = tmp_path / "new" / "film.mp4"
    assert run_command("play", [str(small_run), "--out", str(file), "--seconds", "1.2", *SCENE]) == 0
    assert capsys.readouterr().out == f"{file}: 30 frames, student and teacher\n"
    pictures, fps = decoded(file)
    assert pictures.shape == (30, 160 + 28, 160 + 4 + 160, 3) and fps == 25
    assert (changes(pictures) > 0.2).all(), "something moves from each frame to the next"
    student, teacher = pictures[:, 28:, :160], pictures[:, 28:, 164:]
    apart = np.abs(student.astype(int) - teacher).mean(axis=(1, 2, 3))
    assert apart[0] < 2, "both begin in the same state"
    assert apart[10:].max() > 4 * apart[0], "and each goes its own way"
    for name, left in (("student", 0), ("teacher", 164)):
        bar = pictures[5, 4:24, left + 1 : left + 4].mean(axis=(0, 1))
        assert bar == pytest.approx(np.array(video.COLORS[name]) * 255, abs=45), "labelled in its color"
        assert pictures[5, :28, left + 10 : left + 60].min() < 160, "by its name"


def test_a_gif(small_run, tmp_path):
    file = tmp_path / "film.gif"
    assert run_command("play", [str(small_run), "--out", str(file), "--seconds", "0.8", *SCENE]) == 0
    with Image.open(file) as gif:
        assert gif.format == "GIF" and gif.size == (324, 188) and gif.n_frames == 10
        assert gif.info["duration"] == 80 and gif.info["loop"] == 0
        pictures = []
        for i in range(gif.n_frames):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB")))
    assert (changes(np.stack(pictures)) > 0.2).all()


def test_complaints(small_run, tmp_path, capsys, monkeypatch):
    def complaint(*arguments: str) -> str:
        assert run_command("play", list(arguments)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("jdistill play: error: "), lines
        return lines[0]

    run = str(small_run)
    assert "no run folder (it has no config.yaml)" in complaint(str(tmp_path))
    assert "film.avi: a film is an .mp4 or a .gif" in complaint(run, "--out", str(tmp_path / "film.avi"))
    assert "--scenario hoover: not known (did you mean hover?)" in complaint(run, "--scenario", "hoover")
    assert "env.drone='cf9': expected one of" in complaint(run, "env.drone=cf9")
    assert "unknown flag --second" in complaint(run, "--second", "3")
    (tmp_path / "file").write_text("")
    assert "File exists" in complaint(run, "--out", str(tmp_path / "file" / "film.gif"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "a live view needs a display" in complaint(run, "--live")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")
    mujoco_render.unusable.cache_clear()
    assert "no way to draw without a display (egl: " in complaint(run, "--out", str(tmp_path / "film.mp4"))
    mujoco_render.unusable.cache_clear()
    with pytest.raises(SystemExit) as stop:
        run_command("play", [run, "--seconds", "0"])
    assert stop.value.code == 2 and "'0' is no number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "suffix"), [("av", "mp4"), ("PIL", "gif")])
def test_missing_packages_are_told_before_anything_runs(small_run, tmp_path, capsys, monkeypatch, module, suffix):
    monkeypatch.setitem(sys.modules, module, None)
    assert run_command("play", [str(small_run), "--out", str(tmp_path / f"film.{suffix}")]) == 1
    assert "is not installed; use 'uv run --extra video" in capsys.readouterr().err


def test_training_is_filmed_and_goes_on_as_without_it(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg, students = small_cfg(3), []
    for filmed in (True, False):
        env = AutoReset(PointControl(cfg.env))
        camera = video.Camera(env, length=40) if filmed else None
        callbacks = [video.FilmStudent(camera, interval=2)] if camera else []
        run = tmp_path / str(filmed)
        run.mkdir()
        runner = DistillationRunner(env, cfg, load_teacher(BUNDLED_TEACHER, env, cfg), run, callbacks=callbacks)
        runner.start()
        runner.learn()
        students.append(runner.state.student)
        assert not camera or camera._rollout._act._cache_size() == 1, "one program for both films"
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, students), strict=True))
    run = tmp_path / "True"
    assert sorted(p.name for p in (run / "videos").iterdir()) == ["student_2.mp4", "student_3.mp4"]
    pictures, fps = decoded(run / "videos" / "student_3.mp4")
    assert pictures.shape == (10, 64 + 28, 64, 3) and fps == 25 and (changes(pictures) > 0.2).all()
    assert not (tmp_path / "False" / "videos").exists()
    events = EventAccumulator(str(run))
    events.Reload()
    images = events.Images("Video/student")
    assert [image.step for image in images] == [1, 2]
    assert images[0].encoded_image_string[:6] == b"GIF89a" and images[0].width == 64
    assert read_progress(run)["Loss/behavior"][0] == [0, 1, 2]
