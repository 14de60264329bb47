"""``jdistill quadrotors``: files are written once, and shown."""

from __future__ import annotations

from bridge.crazyflie.simulator import drones
from bridge.quadrotor_distribution import RAPTOR, WIDE
from bridge.quadrotors import read_csv
from jdistill.cli.main import main


def test_quadrotors_are_drawn_and_shown(tmp_path, capsys):
    file = tmp_path / "quads.csv"
    for _ in range(2):  # The same again changes nothing.
        assert main(["quadrotors", "sample", "--num", "3", "--seed", "7", str(file)]) == 0
    assert read_csv(file) == WIDE.sample(3, 7) and "3 quadrotors" in capsys.readouterr().out
    assert main(["quadrotors", "sample", "--num", "4", "--seed", "7", str(file)]) == 1
    assert "exists and holds something else" in capsys.readouterr().err and len(read_csv(file)) == 3
    other = tmp_path / "raptor.csv"
    assert main(["quadrotors", "sample", "--num", "2", "--distribution", "raptor", str(other)]) == 0
    assert read_csv(other) == RAPTOR.sample(2, 0)
    capsys.readouterr()
    assert main(["quadrotors", "show", str(file)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "roll_acceleration" in head and [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert not any("outside" in row for row in rows)


def test_known_drones_are_rows(tmp_path, capsys):
    file = tmp_path / "drones.csv"
    assert main(["quadrotors", "drones", str(file)]) == 0 and read_csv(file) == drones()
    assert main(["quadrotors", "show", str(file), "--distribution", "raptor"]) == 0
    assert "cf2x_L250 outside: twr, motor_tau" in capsys.readouterr().out
