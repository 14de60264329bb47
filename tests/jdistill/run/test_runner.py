"""The loop, in this process: broken data, phase information."""

from __future__ import annotations

import re
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bridge.crazyflie import PointControlCfg
from bridge.env import AutoReset, State
from jdistill.core.schedule import PhaseInfo
from jdistill.errors import DatasetError, TrainingError
from jdistill.export.policy_file import load_policy
from jdistill.run.callbacks import Callback, Record
from jdistill.run.compose import compose
from jdistill.run.inputs import load_recording
from jdistill.run.progress import last_row
from jdistill.run.runner import DistillationRunner
from tests.masses import Masses, masses_teacher

pytestmark = pytest.mark.full


class Breaking(Masses):
    """Masses that are never lost, whose teacher observation becomes NaN after ``good_steps`` steps of an episode."""

    good_steps, max_episode_length = 40, 1000

    def reset(self, rng: jax.Array) -> State:
        state = super().reset(rng)
        return state.replace(pipeline_state=(state.pipeline_state, jnp.zeros(self.num_envs, jnp.int32)))

    def step(self, state: State, action: jax.Array) -> State:
        place, age = state.pipeline_state
        after = super().step(state.replace(pipeline_state=place), action)
        is_good = age + 1 <= self.good_steps
        teacher = jnp.where(is_good[:, None], after.obs["teacher"], jnp.nan)
        return after.replace(
            pipeline_state=(after.pipeline_state, age + 1),
            obs={**after.obs, "teacher": teacher},
            done=jnp.zeros_like(after.done),
        )


@pytest.fixture
def make_runner(tmp_path):
    def make(env_cls=Masses, *overrides: str, folder=tmp_path, callbacks=()) -> DistillationRunner:
        settings = ["env.num_envs=2", "agent.num_steps_per_env=16", "agent.save_interval=1", "agent.logger=none"]
        settings += ["agent.student.rnn_type=null"]
        cfg = compose("crazyflie", PointControlCfg, [], [*settings, *overrides])
        env, teacher = AutoReset(env_cls(cfg.env.num_envs)), masses_teacher()
        return DistillationRunner(env, cfg, teacher, folder, load_recording(env, cfg, teacher), callbacks)

    return make


def test_broken_observations_stop_the_run_and_the_last_good_checkpoint_stays(make_runner, tmp_path):
    runner = make_runner(Breaking, "agent.max_iterations=5")
    runner.start()
    with pytest.raises(TrainingError) as error:
        runner.learn()
    found = re.fullmatch(
        r"iteration 2: NaN or infinity in observation group 'teacher' of environment ([01]) at step (\d+); "
        rf"the checkpoint of iteration 2 is kept in {tmp_path}",
        str(error.value),
    )
    assert found and int(found[2]) < 16
    again = make_runner(Breaking)
    again.load()
    assert again.current_learning_iteration == 2
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(again.state.student))
    student = load_file(tmp_path / "student.safetensors")
    assert (student["params/mlp_1/dense/bias"] == again.state.student.params["mlp_1"]["dense"]["bias"]).all()


def test_nothing_is_compiled_and_only_scalars_leave_the_device_after_the_first_iteration(make_runner):
    """Through both phases, with episodes that end and a checkpoint an iteration."""
    settings = ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=2"]
    runner = make_runner(Masses, *settings, "agent.max_iterations=6")
    runner.start()
    compiled: list[int] = []

    def count(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(runner.current_learning_iteration)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        runner.learn()
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert compiled and max(compiled) == 0
    state, metrics = jax.eval_shape(runner.iteration, runner.state, runner.actor)
    assert all(x.shape == () for x in metrics.scalars.values()) and metrics.finite.ndim == 1
    assert jax.tree.structure(state) == jax.tree.structure(runner.state)
    assert not re.search("callback|outfeed|infeed|send-done|recv-done", runner.program_text())


def test_phase_information(make_runner):
    runner = make_runner(Masses, "agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=7")
    seen = []
    for iteration in (0, 6, 7):
        runner.current_learning_iteration = iteration
        seen.append(runner.get_training_phase_info())
    assert seen[0] == PhaseInfo(
        use_two_stage_training=True,
        training_phase=1,
        current_iteration=0,
        phase1_iterations=7,
        action_source="teacher",
    )
    assert [(s.training_phase, s.action_source) for s in seen[1:]] == [(1, "teacher"), (2, "student")]
    assert [s.is_switch for s in seen] == [False, False, True]


def test_a_history_is_gone_on_with_bitwise(make_runner, tmp_path):
    """The ring, the end of phase 1, who acts in which episode and the average are part of the checkpoint."""
    settings = ["agent.algorithm.use_dagger=true", "agent.algorithm.max_buffer_size=96"]
    settings += ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=2"]
    settings += ["agent.algorithm.phase1_until_return=1e9", "agent.algorithm.beta_schedule=linear"]
    settings += ["agent.algorithm.beta_per=episode", "agent.save_interval=3", "agent.student.rnn_type=gru"]
    settings += ["agent.algorithm.ema_decay=0.9"]
    whole = make_runner(Masses, *settings, "agent.max_iterations=6", folder=tmp_path / "whole")
    whole.start()
    whole.learn()
    half = make_runner(Masses, *settings, "agent.max_iterations=3", folder=tmp_path / "half")
    half.start()
    half.learn()
    again = make_runner(Masses, *settings, "agent.max_iterations=6", folder=tmp_path / "half")
    again.load()
    assert again.state.history.length.tolist() == [48, 48] and again.phase1_end == 2
    again.learn()
    average, newest = (jax.tree.leaves(x) for x in (again.state.ema_params, again.state.student.params))
    saved = load_policy(tmp_path / "half" / "student.safetensors")[1]
    for mean, new, kept in zip(average, newest, jax.tree.leaves(saved.params), strict=True):
        assert (kept == mean).all() and (mean != new).any()
    ours, theirs = (jax.tree_util.tree_leaves_with_path(r.state.replace(rng=None)) for r in (again, whole))
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert (a == b).all(), path


class RecordOnASmallDisk(Record):
    """A recording that runs out of space."""

    def open(self, runner):
        super().open(runner)
        resource.prlimit(self._recorder.process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_a_recording_that_breaks_off_loses_no_training(make_runner, tmp_path):
    settings = ["agent.save_interval=100000", "agent.max_iterations=20000"]
    callbacks = [RecordOnASmallDisk(tmp_path / "f.hdf5")]
    runner = make_runner(Masses, *settings, folder=tmp_path / "run", callbacks=callbacks)
    runner.start()
    with pytest.raises(DatasetError, match=r"File too large.*; the training is saved, and --resume goes on with it$"):
        runner.learn()
    done = runner.current_learning_iteration
    assert 0 < done < 20000 and (tmp_path / "run" / "checkpoints" / str(done)).is_dir()
    assert last_row(tmp_path / "run")["iteration"] == done - 1, "the others had their turn"


class Failing(Callback):
    """Cannot write in the third iteration, and says in which order it was called."""

    def __init__(self):
        self.calls = []

    def open(self, runner):
        self.calls.append("open")

    def before_iteration(self, phase):
        self.calls.append(phase.current_iteration)

    def after_iteration(self, iteration):
        if iteration.number == 2:
            raise OSError(28, "No space left on device", "film.mp4")

    def close(self):
        self.calls.append("close")


def test_a_callback_that_fails_loses_no_training(make_runner, tmp_path):
    callback = Failing()
    settings = ["agent.save_interval=1000", "agent.max_iterations=9"]
    runner = make_runner(Masses, *settings, folder=tmp_path / "run", callbacks=[callback])
    runner.start()
    saved = r"^film.mp4: No space left on device; the training is saved, and --resume goes on with it$"
    with pytest.raises(TrainingError, match=saved):
        runner.learn()
    assert callback.calls == ["open", 0, 1, 2, "close"]
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


def test_what_is_recorded_can_be_trained_on(make_runner, tmp_path, capsys):
    file = tmp_path / "episodes.hdf5"
    first = make_runner(Masses, "agent.max_iterations=4", folder=tmp_path / "first", callbacks=[Record(file)])
    first.start()
    first.learn()
    # Two environments, 64 steps, episodes of at most 12 that began at once: at least 10 ended.
    episodes = int(re.search(r"Recorded (\d+) episodes", capsys.readouterr().out)[1])
    assert episodes >= 10
    settings = [f"agent.algorithm.dataset=[{file}]", "agent.max_iterations=30", "agent.algorithm.gradient_steps=20"]
    settings += ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=2"]
    settings += ["agent.algorithm.beta_schedule=linear", "agent.student.rnn_type=gru"]
    runner = make_runner(Masses, *settings, "agent.algorithm.burn_in_steps=5", folder=tmp_path / "trained")
    assert f"Dataset: {episodes} episodes" in runner.recording.summary
    runner.start()
    start = np.asarray(runner.state.env_state.pipeline_state).copy()
    runner.learn()
    out = capsys.readouterr().out
    assert "PHASE" not in out and "Phase" not in out and "by the teacher" not in out, "nobody steps anything"
    losses = [float(x) for x in re.findall(r"Mean behavior loss: (\S+)", out)]
    assert len(losses) == 30 and losses[-1] < losses[0] / 3
    assert (runner.state.env_state.pipeline_state == start).all(), "no environment was stepped"
    assert (tmp_path / "trained" / "student.safetensors").exists()
    assert float(runner.state.student.normalizer.count) == float(runner.recording.normalizer.count) > 100
