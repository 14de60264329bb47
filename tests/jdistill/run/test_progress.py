"""The scalars of a run, one row an iteration."""

from __future__ import annotations

import pytest

from jdistill.errors import ConfigError
from jdistill.run.progress import ProgressWriter, last_row, read_progress


def test_rows_come_back_and_late_tags_get_columns(tmp_path):
    writer = ProgressWriter(tmp_path, 0)
    writer.write({"Loss/behavior": 0.5}, 0)
    assert (tmp_path / "progress.csv").read_text() == "iteration,Loss/behavior\n0,0.5\n"
    writer.write({"Loss/behavior": 0.25, "Train/mean_reward": -3.0}, 1)
    writer.write({"Loss/behavior": 1e-7}, 2)
    assert read_progress(tmp_path) == {
        "Loss/behavior": ([0, 1, 2], [0.5, 0.25, 1e-7]),
        "Train/mean_reward": ([1], [-3.0]),
    }
    assert last_row(tmp_path) == {"iteration": 2, "Loss/behavior": 1e-7}


def test_a_resume_drops_what_is_run_again(tmp_path):
    writer = ProgressWriter(tmp_path, 0)
    for iteration in range(5):
        writer.write({"a": iteration}, iteration)
    with (tmp_path / "progress.csv").open("a") as file:
        file.write("5,1234")  # What a kill leaves of a row.
    assert last_row(tmp_path)["a"] == 4
    writer = ProgressWriter(tmp_path, 3)
    assert read_progress(tmp_path) == {"a": ([0, 1, 2], [0, 1, 2])}
    writer.write({"a": 30, "b": 1}, 3)
    assert read_progress(tmp_path) == {"a": ([0, 1, 2, 3], [0, 1, 2, 30]), "b": ([3], [1])}


def test_nothing_was_logged_yet(tmp_path):
    assert read_progress(tmp_path) == {} and last_row(tmp_path) == {}
    ProgressWriter(tmp_path, 7)
    assert read_progress(tmp_path) == {} and last_row(tmp_path) == {}


@pytest.mark.parametrize("text", ["iteration,a\n1,x\n", "a,b\n1,2\n", "iteration,a\n1,nan\n", "iteration,a\n1,2,3\n"])
def test_damage_is_told_in_one_line(tmp_path, text):
    (tmp_path / "progress.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"progress.csv: damaged .*; delete it") as error:
        read_progress(tmp_path)
    assert "\n" not in str(error.value)
