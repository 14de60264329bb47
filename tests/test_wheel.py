"""The wheel, installed away from the repository: nothing that a command needs is left behind."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_train_jax import ENVIRONMENT


def run(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] = ENVIRONMENT) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The ``bin`` of an environment with this one's packages, but the project from its wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "the README installs uv"
    # What builds the wheel is in the cache, if this environment was made by uv.
    build = [uv, "build", "--wheel", "--out-dir", folder, ROOT]
    if subprocess.run([*build, "--offline"], cwd=ROOT, capture_output=True).returncode:
        run(*build)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Path files in there are not read, the one that leads to the repository among them.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    python = folder / "venv" / "bin" / "python"
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel)
    return python.parent


def test_the_wheel_does_everything_on_its_own(installed, tmp_path):
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYENV_VERSION")}

    def jdistill(*arguments: str | Path) -> str:
        return run(installed / "jdistill", *arguments, cwd=tmp_path, environment=environment)

    home = "import jdistill, bridge; print(jdistill.__file__, bridge.__file__)"
    for file in run(installed / "python", "-c", home, cwd=tmp_path, environment=environment).split():
        assert Path(file).is_relative_to(installed.parent)
    # The program is that of tests of the command, so that it is compiled once.
    train = ["train", "--phase1", "3", "--max_iterations", "4", "--num_envs", "4", "agent.num_steps_per_env=16"]
    assert "SWITCHING TO PHASE 2" in jdistill(*train, "agent.save_interval=100")
    (folder,) = (tmp_path / "logs" / "jdistill" / "distillation").iterdir()
    assert "learning_rate_half_life: 255" in (folder / "config.yaml").read_text(), "the preset is in the wheel"
    jdistill("evaluate", folder, "--episodes", "4", "--scenario", "hover", "env.episode_length_s=0.1")
    assert json.loads((folder / "evaluation" / "evaluation.json").read_text())["scenarios"].keys() == {"hover"}
    assert jdistill("report", folder.name).strip() == f"logs/jdistill/distillation/{folder.name}/report.html"
    assert "largest difference" in jdistill("export", folder, "--format", "safetensors")
    assert (folder / "exported" / "policy.json").is_file()


def test_the_wheel_holds_every_file_of_the_packages(installed):
    (wheel,) = installed.parents[1].glob("*.whl")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {name for name in tracked if name.startswith(("jdistill/", "bridge/"))}
    wanted |= {f"jdistill/{name}" for name in tracked if name.startswith("configs/")}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
