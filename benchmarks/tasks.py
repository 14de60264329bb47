"""Tasks of Brax, MuJoCo Playground and gymnax, start to finish: rsl_rl's PPO trains a teacher over the reverse bridge,
the command distills students that do not see all of it.

    python -m benchmarks.tasks                      # everything: docs/tasks.json and the tables of docs/simulators.md
    python -m benchmarks.tasks gymnax/Pendulum-v1   # only this task; the other rows stay
    python -m benchmarks.tasks --trial brax/halfcheetah   # a minute, to see that it works; nothing is written
    python -m benchmarks.tasks --teachers DIR       # keeps teachers in DIR; those that are there are taken
    python -m benchmarks.tasks --page               # the tables from the numbers that are there

Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.crazyflie import ROOT
from benchmarks.kept import kept_teacher
from benchmarks.tasks_page import DOCS, write_tables
from bridge import registry
from bridge.env import TrainingEnv
from bridge.tasks import Request, make_env
from jdistill.run import compilation
from jdistill.run.provenance import machine, versions

SEED = 20_000
"""Of held-out episodes."""
GRU = ("agent.student.pre_dims=[]", "agent.student.rnn_hidden_dim=64", "agent.student.hidden_dims=[64]")
LSTM = (*GRU, "agent.student.rnn_type=lstm")
MLP = ("agent.student.pre_dims=[]", "agent.student.rnn_type=null", "agent.student.hidden_dims=[128,128]")
RATE = ("agent.algorithm.learning_rate=2e-3", "agent.algorithm.learning_rate_half_life=40")


@dataclass(frozen=True)
class Job:
    """How one task is learned; sizes are for two CPU cores."""

    sees: str
    """The observation of the recurrent student."""
    settings: tuple[str, ...] = ()
    """Of the environment, ``key=value``."""
    num_envs: int = 256
    ppo_steps: int = 24
    """Of each environment in an iteration of the teacher's training."""
    ppo_iterations: int = 300
    init_std: float = 0.7
    """Of the teacher's exploration. Where only the largest preference counts, or an action beyond the range is cut off,
    much of it goes on exploring for longer."""
    entropy_coef: float = 2e-3
    discount: float = 0.99
    iterations: int = 120
    """Of the distillation; a third of them is phase 1."""
    num_steps: int = 64
    episodes: int = 256
    students: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"GRU": GRU})
    """Their settings by name."""
    stacked: str | None = None
    """The task that has the MLP's group ``stack``."""


JOBS = {
    "brax/halfcheetah": Job(
        "policy[:8]",
        ("env.backend=spring",),
        ppo_steps=40,
        ppo_iterations=1000,
        discount=0.97,
        iterations=150,
        students={"GRU": GRU, "LSTM": LSTM, "MLP, 4 observations": MLP},
        stacked="benchmarks/stacked.py:halfcheetah",
    ),
    "playground/CartpoleBalance": Job("policy[:3]", ppo_iterations=150, iterations=240),
    "gymnax/Pendulum-v1": Job("policy[:2]", ppo_iterations=250, discount=0.95),
    "gymnax/CartPole-v1": Job("policy[0,2]", ppo_iterations=120),
    "gymnax/Acrobot-v1": Job("policy[:4]", ppo_iterations=50, ppo_steps=100, init_std=3.0, entropy_coef=0.0),
    "gymnax/MountainCarContinuous-v0": Job(
        "policy[:1]", ppo_iterations=60, ppo_steps=100, init_std=3.0, discount=0.999
    ),
}
"""By the names of their tasks. 10 million steps of halfcheetah; of the robot's state students see positions alone."""


def trial(job: Job) -> Job:
    """The same, as small as can be."""
    return replace(job, num_envs=8, ppo_steps=8, ppo_iterations=2, iterations=3, num_steps=16, episodes=4)


def opened(name: str, num_envs: int, settings: Sequence[str] = ()) -> TrainingEnv:
    """The environments of a task."""
    task = registry.load(registry.find(Request(name)), name)
    said = dict(setting.removeprefix("env.").split("=") for setting in settings)
    return make_env(task, task.cfg_cls(num_envs=num_envs, **said))


# -- the teacher ---------------------------------------------------------------------------------------------------


def ppo_settings(job: Job) -> dict[str, Any]:
    """rsl_rl's runner, in the terms of its own configs."""
    network: dict[str, Any] = {"class_name": "rsl_rl.models:MLPModel", "hidden_dims": [128, 128], "activation": "elu"}
    network["obs_normalization"] = True
    noise = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution", "init_std": job.init_std}
    algorithm = {"class_name": "rsl_rl.algorithms:PPO", "num_learning_epochs": 5, "num_mini_batches": 4}
    algorithm |= {"gamma": job.discount, "lam": 0.95, "schedule": "adaptive", "desired_kl": 0.01}
    algorithm["entropy_coef"] = job.entropy_coef
    return {
        "num_steps_per_env": job.ppo_steps,
        "save_interval": 10**9,
        "logger": "tensorboard",
        "run_name": "",
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {**network, "distribution_cfg": noise},
        "critic": network,
        "algorithm": algorithm,
    }


def train_teacher(name: str, job: Job, folder: Path) -> Path:
    """Its last checkpoint."""
    from rsl_rl.runners import OnPolicyRunner

    from benchmarks.torch_side import torch_device
    from bridge.torch_vecenv import TorchVecEnv

    with contextlib.redirect_stdout(io.StringIO()):
        vecenv = TorchVecEnv(opened(name, job.num_envs, job.settings))
        runner = OnPolicyRunner(vecenv, ppo_settings(job), str(folder), torch_device())
        runner.learn(job.ppo_iterations, init_at_random_ep_len=True)
    return folder / f"model_{job.ppo_iterations - 1}.pt"


# -- the students --------------------------------------------------------------------------------------------------


def command(name: str, job: Job, student: str, teacher: Path | str) -> list[str]:
    """What a user types behind ``train_jax.py``."""
    stacks = student.startswith("MLP")
    task, sees = (job.stacked or name, "stack") if stacks else (name, job.sees)
    arguments = ["--task", task, "--num_envs", str(job.num_envs), "--teacher", str(teacher)]
    arguments += ["--phase1", str(job.iterations // 3), "--max_iterations", str(job.iterations)]
    arguments += [f"agent.num_steps_per_env={job.num_steps}", f"agent.obs_groups.student={sees}"]
    # What the teacher says beyond the range of actions is cut off, and a student's tanh cannot say it.
    arguments += ["agent.obs_groups.teacher=policy", "agent.student.output_activation=identity", *RATE]
    return [*arguments, *job.students[student], *job.settings]


def distill(name: str, job: Job, student: str, teacher: Path, logdir: Path) -> Path:
    """The run's folder."""
    arguments = [*command(name, job, student, teacher), "--logger", "none", "--logdir", str(logdir)]
    done = subprocess.run([sys.executable, str(ROOT / "train_jax.py"), *arguments], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{name}: training failed with status {done.returncode}")
    (run,) = logdir.glob("*/*")
    return run


def worth(task: str, job: Job, file: Path, entries: Sequence[str]) -> float:
    """The mean return of a policy over held-out episodes."""
    from jdistill.evaluation.evaluate import evaluate
    from jdistill.export.policy_file import load_policy

    policy, state, _ = load_policy(file)
    settings = job.settings if task in JOBS else ()
    return float(evaluate(opened(task, job.episodes, settings), policy, state, entries, seed=SEED)["return"])


def rows_of(name: str, job: Job, teachers: Path | None) -> list[dict[str, Any]]:
    """A row for each student of a task; the teacher is kept in ``teachers``."""
    from jdistill.run.progress import read_progress

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made_by = {"ppo": ppo_settings(job), "task": job.settings, "sizes": [job.num_envs, job.ppo_iterations]}
        kept = (teachers or folder) / name.replace("/", "-")
        teacher, took = kept_teacher(kept, made_by, lambda at: train_teacher(name, job, at))
        expected: float | None = None
        for i, student in enumerate(job.students):
            began = time.perf_counter()
            run = distill(name, job, student, teacher, folder / f"logs{i}")
            minutes = {"teacher": took, "student": (time.perf_counter() - began) / 60}
            if expected is None:
                expected = worth(name, job, run / "teacher.safetensors", ["policy"])
            said = command(name, job, student, "model.pt")
            task, sees = said[1], next(x.split("=", 1)[1] for x in said if x.startswith("agent.obs_groups.student"))
            found = worth(task, job, run / "student.safetensors", [sees])
            speeds = read_progress(run)["Perf/total_fps"][1]
            rows.append(
                {
                    "task": name,
                    "simulator": name.partition("/")[0],
                    "student": student,
                    "sees": sees,
                    "command": "train_jax.py " + shlex.join(said),
                    "teacher_return": expected,
                    "student_return": found,
                    "steps_per_second": statistics.median(speeds),
                    "teacher_steps": job.num_envs * job.ppo_steps * job.ppo_iterations,
                    "minutes": minutes,
                }
            )
    return rows


# -- speed ---------------------------------------------------------------------------------------------------------


def alone(name: str, job: Job) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``reset`` and ``step`` of a task's simulator without us, with its own wrappers and its own restarts."""
    simulator, _, short = name.partition("/")
    said = dict(setting.removeprefix("env.").split("=") for setting in job.settings)
    if simulator == "brax":
        from brax import envs

        env: Any = envs.create(short, batch_size=job.num_envs, **said)
        return env.reset, env.step
    if simulator == "playground":
        from mujoco_playground import registry as theirs
        from mujoco_playground import wrapper

        cfg = theirs.get_default_config(short)
        cfg.impl = "jax"
        env = wrapper.wrap_for_brax_training(theirs.load(short, cfg), cfg.episode_length, full_reset=False)
        return lambda rng: env.reset(jax.random.key_data(jax.random.split(rng, job.num_envs))), env.step
    import gymnax

    single, params = gymnax.make(short)

    # What a step gives is kept, else the compiler would leave out its computation.
    def step(state: Any, action: Any) -> Any:
        keys = jax.vmap(jax.random.split)(state[0])
        choice = action.argmax(-1) if hasattr(single.action_space(params), "n") else action
        obs, sim, reward, *_ = jax.vmap(single.step, (0, 0, 0, None))(keys[:, 1], state[1], choice, params)
        return keys[:, 0], sim, obs, reward

    def reset(rng: Any) -> Any:
        rng = jax.random.split(rng, job.num_envs)
        state = rng, *jax.vmap(single.reset, (0, None))(rng, params)[::-1], jax.numpy.zeros(job.num_envs)
        return step(state, jax.numpy.zeros((job.num_envs, size)))

    size = getattr(single.action_space(params), "n", None) or single.action_space(params).shape[0]
    return reset, step


def scanned(step: Callable[..., Any], num_actions: int, job: Job) -> Callable[..., Any]:
    """A program of ``num_steps`` steps with actions that are zero."""
    action = jax.numpy.zeros((job.num_envs, num_actions))
    return jax.jit(lambda state: jax.lax.scan(lambda s, _: (step(s, action), None), state, None, job.num_steps)[0])


def seconds(program: Callable[..., Any], state: Any) -> float:
    """Of one call."""
    began = time.perf_counter()
    jax.block_until_ready(program(state))
    return time.perf_counter() - began


def collection(name: str, job: Job, turns: int) -> dict[str, float]:
    """Steps per second of the simulator alone and behind our interface, and the median ratio of adjacent turns."""
    env = opened(name, job.num_envs, job.settings)
    reset, step = alone(name, job)
    programs = {
        "alone": (scanned(step, env.num_actions, job), jax.jit(reset)(jax.random.key(0))),
        "ours": (scanned(env.step, env.num_actions, job), jax.jit(env.reset)(jax.random.key(0))),
    }
    for program, state in programs.values():
        seconds(program, state)
    laps = [{side: seconds(*pair) for side, pair in programs.items()} for _ in range(turns)]
    steps = job.num_envs * job.num_steps
    found = {f"{side}_steps_per_second": steps / statistics.median(lap[side] for lap in laps) for side in programs}
    return {**found, "ratio": statistics.median(lap["alone"] / lap["ours"] for lap in laps)}


def iteration(name: str, job: Job, turns: int) -> dict[str, Any]:
    """Whole iterations of rsl_rl's runner over the reverse bridge and ours in turns, with one teacher and student."""
    from benchmarks.rsl_rl import alternate, make_torch_runner, medians
    from jdistill.core import networks
    from jdistill.core.actor import PolicyActor
    from jdistill.core.distillation import Distillation
    from jdistill.core.networks import Policy
    from jdistill.run.compose import compose
    from jdistill.run.inputs import make_student

    task = registry.load(registry.find(Request(name)), name)
    settings = [f"env.num_envs={job.num_envs}", f"agent.num_steps_per_env={job.num_steps}"]
    groups = ["agent.obs_groups.student=policy", "agent.obs_groups.teacher=policy"]
    cfg = compose(task.name, task.cfg_cls, [{"agent": dict(task.agent_defaults)}], [*settings, *groups])
    env = make_env(task, cfg.env)
    size = env.obs_specs["policy"].shape[0]
    teacher = Policy(num_actions=env.num_actions, hidden_dims=(128, 128))
    teacher_state = networks.init(teacher, jax.random.key(1), size, normalize=True)
    actor = PolicyActor(teacher, teacher_state, ("policy",))
    algorithm = Distillation(env, make_student(cfg.agent.student, env.num_actions), cfg.agent)
    state = jax.jit(algorithm.init)(jax.random.key(cfg.agent.seed), actor)
    theirs = make_torch_runner(cfg, env, (algorithm.student, state.student), (teacher, teacher_state))
    _, laps = alternate(turns, algorithm, state, actor, theirs)
    pairs = zip(laps["jdistill"]["iteration_s"], laps["rsl_rl"]["iteration_s"], strict=True)
    ratio = statistics.median(b / a for a, b in pairs)
    return {"task": name, "ratio": ratio, **{side: medians(laps[side]) for side in laps}}


# -- all of it -----------------------------------------------------------------------------------------------------


def measure(name: str, job: Job, turns: int, teachers: Path | None) -> dict[str, Any]:
    """All that the tables say of a task."""
    found: dict[str, Any] = {"job": asdict(job), "rows": rows_of(name, job, teachers)}
    found["collection"] = collection(name, job, turns)
    if name.startswith("gymnax/"):
        found["iteration"] = iteration(name, replace(job, num_envs=min(job.num_envs, 100)), turns)
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="TASK", help=f"only these of {', '.join(JOBS)}")
    parser.add_argument("--trial", action="store_true", help="as small as can be, to see that it works; writes nothing")
    parser.add_argument("--teachers", type=Path, metavar="DIR", help="where teachers are kept for the next time")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the tables")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in JOBS]:
        parser.error(f"no task {unknown[0]}, there are {', '.join(JOBS)}")
    compilation.prepare()
    file = DOCS / "tasks.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"tasks": {}}
    for name in [] if args.page else args.names or JOBS:
        job, turns = (trial(JOBS[name]), 2) if args.trial else (JOBS[name], 9)
        found = measure(name, job, turns, args.teachers)
        print(json.dumps(found, indent=1), flush=True)
        results["tasks"][name] = found
        results |= {"machine": machine(), "versions": versions("jax", *registry.packages(), "rsl-rl-lib")}
        if not args.trial:  # After each, since all of it takes hours.
            file.write_text(json.dumps(results, indent=1) + "\n")
    if not args.trial:
        write_tables(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
