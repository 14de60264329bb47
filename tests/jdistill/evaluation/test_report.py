"""The report, opened in a real browser."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

from jdistill.cli.main import run_command
from jdistill.evaluation import report
from jdistill.evaluation.figures import CURVES
from jdistill.evaluation.plot import Figure, as_json
from jdistill.run.progress import read_progress

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.fail("no Chromium: install it, on Debian with 'apt-get install chromium'")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


def trace(offset: float, steps: int = 300) -> dict:
    """A spiral of 3 s, ``offset`` m beside its target."""
    turn = [0.02 * i for i in range(steps)]
    target = [[math.cos(t), math.sin(t), 0.1 * t] for t in turn]
    action = [[math.sin(t + i) for i in range(4)] for t in turn]
    return {
        "time": [0.01 * i for i in range(steps)],
        "target": target,
        "position": [[x + offset, y, z] for x, y, z in target],
        "main_metric": [offset] * steps,
        "action": [[a + offset for a in row] for row in action],
        "teacher_action": action,
    }


def numbers(offset: float) -> dict:
    """What an evaluation says of one policy in one scenario."""
    return {
        "survival": 1 - offset,
        "return": 123.4 - offset,
        "length": 300.0,
        "action_change": 0.01,
        "agreement": {"rmse": offset, "r2": 1 - offset},
        "metrics": {"position_error": {"mean": offset, "p95": 2 * offset, "steady": 0.07 + offset}},
        "terminations": {"tilt": 3},
        "histograms": {"position_error": {"edges": [0.0, 0.1, 0.2], "counts": [3, 1]}},
        "traces": [trace(offset), trace(offset / 2), trace(offset, steps=0)],
    }


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the small run, evaluated."""
    folder = tmp_path / "exp" / "a&b"
    shutil.copytree(small_run, folder)
    crashed = {**numbers(0.4), "metrics": {"position_error": {"mean": 0.4, "p95": None, "steady": None}}}
    evaluation = {
        "format": 1,
        "run": str(folder),
        "task": "crazyflie",
        "main_metric": "position_error",
        "iteration": 6,
        "episodes": 50,
        "seed": 9,
        "machine": {"cpu": "a </script> processor", "cores": 2},
        "versions": {"jax": "0.12"},
        "policies": {name: {"parameters": 2340, "flops": 5e3, "bytes": None} for name in ("student", "teacher")},
        "scenarios": {
            "default": {"description": "as trained", "policies": {"student": numbers(0.25), "teacher": numbers(0.125)}},
            "wind": {"description": "it blows <hard>", "policies": {"student": crashed, "teacher": numbers(0.125)}},
        },
    }
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def opened(browser, file):
    """The page, drawn; it must load nothing but itself and complain of nothing."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints, requests = [], []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("requestfailed", lambda r: complaints.append(r.url))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert complaints == [] and {r for r in requests if not r.startswith(("data:", "blob:"))} == {file.as_uri()}
    return page, complaints


def test_the_page_draws_everything_and_loads_nothing(run, browser, capsys):
    assert run_command("report", [str(run)]) == 0
    file = run / "report.html"
    assert capsys.readouterr().out.strip() == str(file)
    page, complaints = opened(browser, file)
    assert page.title() == "exp/a&b"
    curves = page.locator("#curves .js-plotly-plot")
    assert (
        curves.count() >= len([tag for tag in read_progress(run) if tag.startswith("Metrics/") or tag in CURVES]) >= 4
    )
    for i in range(curves.count()):
        assert "phase 2" in curves.nth(i).text_content(), "the switch is marked in every curve"
    rows = page.locator("table").first.locator("tbody tr")
    assert rows.count() == 4
    cells = ["student", "75.0%", "123.2", "0.2500", "0.5000", "0.3200"]
    assert rows.nth(0).locator("td").all_text_contents()[1:7] == cells
    assert rows.nth(2).locator("td").all_text_contents()[4:7] == ["0.4000", "–", "–"]
    assert "wind" in page.locator("#overview").text_content()
    episode = page.locator("#episodes .js-plotly-plot")
    titles = ["Path", "Position", "Position error", "Student's action, and the teacher's in its place"]
    titles += ["Position error when settled", "Agreement, in the episodes shown"]
    assert episode.evaluate_all("plots => plots.map(p => p.layout.title.text)") == titles
    assert page.locator("#episodes canvas").count(), "the path is drawn in space"
    assert "python train_jax.py --phase1 4" in page.locator("pre").first.text_content()
    assert "phase1_iterations: 4" in page.locator("details pre").text_content()
    # Another scenario, another episode.
    student = "document.querySelector('#episodes .js-plotly-plot')._fullData.find(t => t.name === 'student').x[0]"
    before = page.evaluate(student)
    page.select_option("#scenario", "wind")
    assert page.locator("#about").text_content() == "it blows <hard>"
    assert before == pytest.approx(1.25) and page.evaluate(student) == pytest.approx(1.4)
    page.select_option("#episode", "1")
    assert page.evaluate(student) == pytest.approx(1.2)
    page.select_option("#episode", "2")
    assert episode.count() == 2, "an episode without a step has a histogram and the agreement of the others"
    assert complaints == []


def figures_in(value):
    """The figures anywhere in what the page draws."""
    if isinstance(value, dict) and "layout" in value:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from figures_in(part)


def test_plotly_finds_nothing_wrong_with_any_figure(run):
    evaluation = report.read_evaluation(run)
    evaluation["scenarios"]["wind"]["policies"]["student"]["survival"] = math.nan
    for t in (t for s in evaluation["scenarios"].values() for p in s["policies"].values() for t in p["traces"]):
        t["position"][-1:], t["main_metric"][-1:] = [[None, None, None]], [None]
    text = report.write_report(run, evaluation).read_text()
    (found,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    drawn = list(figures_in(json.loads(found, parse_constant=pytest.fail)))
    for figure in drawn:
        assert figure["data"] and go.Figure(figure).to_plotly_json()["layout"]["height"] == figure["layout"]["height"]
    titles = {figure["layout"]["title"]["text"] for figure in drawn}
    assert {"Behavior loss", "", "Path", "Position", "Position error", "Position error when settled"} < titles
    assert {"Agreement, in the episodes shown", "Student's action, and the teacher's in its place"} < titles
    assert any("shapes" in figure["layout"] for figure in drawn), "the switch of phases"
    survival = next(f for f in drawn if f["layout"]["title"]["text"] == "")["data"][0]
    assert survival["name"] == "student" and survival["x"] == [0.75, None]
    with pytest.raises(ValueError, match="heigth"):
        go.Figure({"layout": {"heigth": 1}})


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 2), (3, 1), (4, 2)])
def test_the_grid_is_that_of_plotly(rows, columns):
    spacing = {"vertical_spacing": 0.04, "horizontal_spacing": 0.06}
    titles = [str(i) for i in range(rows * columns)]
    shared = {"shared_xaxes": True, "shared_yaxes": True}
    expected = make_subplots(rows, columns, subplot_titles=titles, **shared, **spacing).to_plotly_json()["layout"]
    figure = Figure(300, grid=(rows, columns), spacing=(0.04, 0.06))
    for cell, title in enumerate(titles):
        figure.caption(cell, title, size=16)
    axes = [name for name in expected if name[1:].startswith("axis")]
    assert sorted(axes) == sorted(name for name in figure.layout if name[1:].startswith("axis"))
    for name in axes:
        axis = {k: figure.layout[name][k] for k in expected[name]}
        assert axis.pop("domain") == pytest.approx(expected[name].pop("domain")) and axis == expected[name]
        assert ("matches" in figure.layout[name]) == ("matches" in expected[name])
    for ours, theirs in zip(figure.layout["annotations"], expected["annotations"], strict=True):
        assert [ours.pop(k) for k in "xy"] == pytest.approx([theirs.pop(k) for k in "xy"]) and ours == theirs


def test_arrays_are_packed_as_plotly_packs_them():
    for dtype in ("f4", "f8"):
        z = np.arange(12, dtype=dtype).reshape(3, 4)
        z[1, 2] = np.nan
        expected = json.loads(go.Figure([go.Heatmap(z=z)]).to_json())["data"][0]["z"]
        assert as_json({"z": z}) == {"z": expected} and expected["dtype"] == dtype and expected["shape"] == "3, 4"
    for values, dtype in (([0, 200], "u1"), ([-1, 200], "i2"), ([0, 40_000], "u2"), ([-1, 40_000], "i4")):
        found = as_json(np.array(values))
        assert found["dtype"] == dtype
        assert np.frombuffer(base64.b64decode(found["bdata"]), dtype).tolist() == values
    assert as_json([z[0, 1], z[1, 2], z[:0, 0], math.inf, np.array([2**40]), "a"]) == [1, None, [], None, [2**40], "a"]


def test_it_fits_the_screen_and_the_paper(run, browser):
    page, _ = opened(browser, report.write_report(run, report.read_evaluation(run)))
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})
    right = page.locator(".main-svg").evaluate_all("all => Math.max(...all.map(s => s.getBoundingClientRect().right))")
    assert right <= 701, "nothing is cut off at the edge of the paper"
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_without_an_evaluation_there_are_curves(small_run, tmp_path, browser):
    run = tmp_path / "exp" / "run"
    shutil.copytree(small_run, run)
    assert report.read_evaluation(run) is None
    page, _ = opened(browser, report.write_report(run, None))
    assert page.locator("#curves .js-plotly-plot").count() >= 4
    assert f"jdistill evaluate {run}" in page.content()
    (run / "progress.csv").unlink()
    text = report.write_report(run, None).read_text()
    assert "no progress.csv" in text and 'id="curves"' not in text


def test_an_environment_without_positions(run, browser):
    """Any environment has returns and actions; the page shows what there is."""
    evaluation = report.read_evaluation(run)
    for result in evaluation["scenarios"].values():
        for policy in result["policies"].values():
            policy["metrics"] = policy["histograms"] = {}
            policy["traces"] = [{k: t[k] for k in ("time", "action", "teacher_action")} for t in policy["traces"]]
    page, _ = opened(browser, report.write_report(run, evaluation))
    assert page.locator("#episodes .js-plotly-plot").count() == 2
    assert page.locator(".key").all_text_contents()[-2:] == ["student", "teacher"], "no target is drawn"
    heads = page.locator("table").first.locator("th").all_text_contents()
    assert heads == ["scenario", "policy", "survival", "return", "action change", "RMSE", "R²"]
    assert "Return" in page.locator("#overview").text_content()


def test_a_task_with_a_goal_and_a_camera(run, browser):
    """Success in place of survival, and what was seen on the way."""
    evaluation = report.read_evaluation(run)
    for result in evaluation["scenarios"].values():
        for policy in result["policies"].values():
            policy["success"] = policy["survival"] / 2
            policy["traces"][0]["view"] = [[0.1 * i for i in range(8)]] * len(policy["traces"][0]["time"])
    page, _ = opened(browser, report.write_report(run, evaluation))
    assert page.locator("table").first.locator("th").all_text_contents()[2] == "success"
    assert "37.5%" in page.locator("table").first.text_content()
    titles = page.locator("#episodes .js-plotly-plot").evaluate_all("plots => plots.map(p => p.layout.title.text)")
    assert sum("seen on the" in title for title in titles) == 2


def test_a_task_of_its_own_metric(run, browser):
    """An angle in place of a position: no path, but its course, its spread and its column."""
    evaluation = report.read_evaluation(run)
    evaluation["main_metric"] = "tilt"
    for result in evaluation["scenarios"].values():
        for policy in result["policies"].values():
            policy["metrics"] = {"speed": {}, "tilt": policy["metrics"]["position_error"]}
            policy["histograms"] = {"tilt": policy["histograms"]["position_error"]}
            kept = ("time", "main_metric", "action", "teacher_action")
            policy["traces"] = [{"position": t["main_metric"], **{k: t[k] for k in kept}} for t in policy["traces"]]
    page, _ = opened(browser, report.write_report(run, evaluation))
    titles = page.locator("#episodes .js-plotly-plot").evaluate_all("plots => plots.map(p => p.layout.title.text)")
    assert titles[:1] == ["Tilt"] and "Tilt when settled" in titles and not {"Path", "Position"} & set(titles)
    assert page.locator("table").first.locator("th").all_text_contents()[4] == "tilt, mean"
    assert "tilt, steady, default" in page.locator("header").text_content()


def test_evaluations_of_the_first_version_are_read(run):
    """They name no main metric, and their traces call it the error."""
    evaluation = report.read_evaluation(run)
    expected = report.write_report(run, evaluation).read_text()
    del evaluation["main_metric"]
    for result in evaluation["scenarios"].values():
        for policy in result["policies"].values():
            policy["metrics"]["altitude"] = {}
            policy["traces"] = [{**t, "error": t.pop("main_metric")} for t in policy["traces"]]
    assert report.write_report(run, evaluation).read_text() == expected
    assert report.main_metric({**evaluation, "main_metric": None}) == "altitude"


def test_complaints(run, tmp_path, capsys, monkeypatch):
    def complaint(*arguments: str) -> str:
        assert run_command("report", list(arguments)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("jdistill report: error: "), lines
        return lines[0]

    assert "no run folder (it has no config.yaml)" in complaint(str(tmp_path))
    assert "no such run; 'jdistill runs' lists those" in complaint("nowhere", "--logdir", str(tmp_path / "logs"))
    file = run / "evaluation" / "evaluation.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 1', '"format": 2'))
    assert re.search(r"format 2, this version reads 1; evaluate anew with 'jdistill evaluate ", complaint(str(run)))
    file.write_text(text[:100])
    assert "damaged (JSONDecodeError); evaluate anew" in complaint(str(run))
    file.write_text(text)
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "needs plotly, which is not installed; use 'uv run --extra report" in complaint(str(run))
    assert not (run / "report.html").exists()
