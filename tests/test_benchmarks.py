"""What the benchmarks wrote is what the pages say."""

from __future__ import annotations

import json

import pytest

from benchmarks import dagger, devices, faults, forest, isaaclab_tasks, quadrotors, raptor, tasks_page, teachers
from benchmarks.page import DOCS, page
from tests.conftest import ROOT


def test_the_performance_page_is_that_of_the_numbers_beside_it():
    assert (DOCS / "performance.md").read_text() == page()


def test_the_tables_of_the_history_are_those_of_the_numbers_beside_them():
    results, text = json.loads((DOCS / "dagger.json").read_text()), (DOCS / "dagger.md").read_text()
    for table in (dagger.table(results), dagger.cost_table(results["cost"])):
        assert f"\n\n{table}\n\n" in text


def test_what_many_teachers_cost_is_what_the_page_says():
    results = json.loads((DOCS / "teachers.json").read_text())
    assert f"\n\n{teachers.table(results)}\n\n" in (DOCS / "teachers.md").read_text()


@pytest.mark.full
def test_what_images_cost_is_what_the_page_says():
    from benchmarks import images  # Which has rsl_rl beside it.

    results, text = json.loads((DOCS / "images.json").read_text()), (DOCS / "images.md").read_text()
    for table in (images.table(results), images.profile_table(results)):
        assert f"\n\n{table}\n\n" in text
    assert min(results["times_as_fast_as_rsl_rl"].values()) >= 1


@pytest.mark.full
def test_what_an_image_costs_on_its_way_is_what_the_page_says():
    from benchmarks import copies  # Which has torch beside it.

    results, text = json.loads((DOCS / "copies.json").read_text()), (DOCS / "images.md").read_text()
    assert f"\n\n{copies.table(results['results'])}\n\n" in text
    assert all(row["torch_writes"] == row["passes"] for row in results["results"].values())


def test_what_isaac_labs_tasks_do_is_what_the_page_says():
    rows = json.loads((DOCS / "isaaclab_tasks.json").read_text())["rows"]
    assert f"\n\n{isaaclab_tasks.table(rows)}\n\n" in (DOCS / "isaaclab.md").read_text()


def test_the_students_of_many_quadrotors_are_what_the_page_says():
    found = json.loads((DOCS / "quadrotors.json").read_text())
    text = (DOCS / "crazyflie.md").read_text()
    assert f"\n\n{quadrotors.table(found['results'])}\n\n" in text
    assert f"took {sum(found['seconds'].values()) / 60:.0f} minutes" in text
    assert all(teacher["passed"] == "True" for teacher in found["teachers"]) and "All 100 teachers were good" in text


def test_the_comparisons_with_raptor_are_those_of_the_numbers():
    results, text = json.loads((DOCS / "evaluation.json").read_text()), (DOCS / "evaluation.md").read_text()
    for table in (raptor.table(results["scenarios"]), raptor.table(results["held_out"])):
        assert f"\n\n{table}\n\n" in text
    _, _, selection = (ROOT / "README.md").read_text().partition("| scenario | student | RAPTOR |\n|---|---|---|\n")
    rows = selection.split("\n\n")[0].splitlines()
    assert len(rows) > 5
    for row in rows:
        name = row.split("|")[1].strip()
        policies = results["scenarios"][name]["policies"]
        cells = []
        for policy in (policies["student"], policies["raptor"]):
            steady = policy["metrics"]["position_error"]["steady"]
            cells.append(("-" if steady is None else f"{steady:.4f} m") + f", {policy['survival']:.1%}")
        assert row == f"| {name} | {cells[0]} | {cells[1]} |"


def test_what_eyes_are_worth_is_what_the_page_says():
    results, text = json.loads((DOCS / "forest.json").read_text()), (DOCS / "forest.md").read_text()
    assert f"\n\n{forest.table(results)}\n\n" in text and forest.cost_line(results["cost"]) in text
    success = {name: found["success"] for name, found in results["policies"].items()}
    assert success["student"] > success["teacher"] - 0.05 and success["student"] > success["blind student"] + 0.3
    assert results["cost"]["ratio"] < 1.5 and f"{results['episodes']} forests" in text


def test_the_tables_of_the_simulators_are_those_of_the_numbers():
    file = DOCS / "tasks.json"
    results = json.loads(file.read_text()) if file.is_file() else {"tasks": {}}
    assert f"\n\n{tasks_page.tables(results)}\n\n" in tasks_page.PAGE.read_text()


def test_the_faults_that_were_tried_are_what_the_page_says():
    results = json.loads((DOCS / "faults.json").read_text())
    assert f"\n\n{faults.tables(results)}\n\n" in faults.PAGE.read_text()
    for what, found in results["rows"].items():
        assert found["survived"] > 0 and not (found["lost"] or found["silent"] or found["tracebacks"]), what


def test_what_devices_exchange_is_what_the_page_says():
    text = (DOCS / "scaling_out.md").read_text()
    short, long = (devices.exchange(8, 4096, steps)["parts"] for steps in (24, 400))
    for name in short:
        cells = [f"{found[name]['exchanges']} | {found[name]['bytes']}" for found in (short, long)]
        assert f"\n| {name} | {cells[0]} | {cells[1]} |\n" in text


def test_what_a_gpu_is_given_to_do_is_what_the_page_says():
    found, text = json.loads((DOCS / "gpu_program.json").read_text()), (DOCS / "gpu.md").read_text()
    step, gradient = found["rollout step"], found["gradient step"]
    assert (
        f"| a step of the rollout | {step['kernels']} | {step['copies']} | {step['launched by the host']} CUDA graph |"
        in text
    )
    assert f"| a gradient step | {gradient['kernels']} | {gradient['copies']} | none" in text
    assert not (gradient["launched by the host"] or found["branches by the host"] or found["products in TF32"])
    assert f"none of {found['products']} products is in TF32" in text
