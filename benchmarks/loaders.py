"""A recording as the programs of others read it: robomimic's loader and behaviour cloning, LeRobot's loader.

Their packages do not go with ours, so each reads in an environment of its own, and this file imports nothing of ours:

    jdistill dataset export rollouts.hdf5 --out rollouts_lerobot
    uv run --no-project --with robomimic==0.3.0 python benchmarks/loaders.py robomimic rollouts.hdf5
    uv run --no-project --with 'lerobot[dataset]==0.6.1' python benchmarks/loaders.py lerobot rollouts_lerobot

(robomimic asks for packages that no longer build. It reads with torch, torchvision, h5py, numpy, tqdm, termcolor, six,
psutil, imageio, scipy, tensorboardX and matplotlib, installed before it with ``--no-deps``.)
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def robomimic(file: str) -> None:
    """Sequences of every kind of cache, and three epochs of behaviour cloning."""
    import h5py
    import robomimic.utils.file_utils as files
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory
    from robomimic.config import config_factory
    from robomimic.utils.dataset import SequenceDataset
    from torch.utils.data import DataLoader

    with h5py.File(file) as opened:
        keys = list(opened["data/demo_0/obs"])
    config = config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = keys
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = files.get_shape_metadata_from_dataset(file, all_obs_keys=keys)
    print(f"environment {files.get_env_metadata_from_dataset(file)['env_name']}, {dict(shapes['all_shapes'])}")
    names = ["actions", "rewards", "dones"]
    for cache in (None, "low_dim", "all"):
        data = SequenceDataset(file, keys, names, seq_length=3, hdf5_cache_mode=cache, load_next_obs=False)
        shape = next(iter(DataLoader(data, batch_size=8)))["actions"].shape
        print(f"cache {cache}: {data.n_demos} episodes, {len(data)} sequences, a batch's actions are {list(shape)}")
    model = algo_factory("bc", config, shapes["all_shapes"], shapes["ac_dim"], "cpu")
    model.set_train()
    data = SequenceDataset(file, keys, names, load_next_obs=False)
    for epoch in range(3):
        losses = [
            float(model.train_on_batch(model.process_batch_for_training(batch), epoch)["losses"]["action_loss"])
            for batch in DataLoader(data, batch_size=100, shuffle=True)
        ]
        print(f"behaviour cloning, epoch {epoch}: loss {sum(losses) / len(losses):.3f}")


def lerobot(folder: str) -> None:
    """Windows of several steps; and whether LeRobot writes the same files with the same columns."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import pyarrow.parquet as pq
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    step = 1 / LeRobotDataset("local/recording", root=folder).fps
    data = LeRobotDataset("local/recording", root=folder, delta_timestamps={"action": [0.0, step, 2 * step]})
    rows = sum(len(batch["index"]) for batch in DataLoader(data, batch_size=64, shuffle=True))
    print(f"{data.num_episodes} episodes, {rows} rows at {data.fps} a second, actions {list(data[0]['action'].shape)}")
    features = {k: dict(v) for k, v in data.meta.features.items() if k not in COUNTED}
    own = LeRobotDataset.create("local/own", fps=data.fps, root=Path(tempfile.mkdtemp()) / "own", features=features)
    for row in range(4):
        frame = {k: data[row][k].numpy().reshape(-1, *f["shape"])[0].astype(f["dtype"]) for k, f in features.items()}
        own.add_frame({**frame, "task": "test"})
    own.save_episode()
    own.finalize()
    for path in sorted(Path(own.root).rglob("*.parquet")):
        name = path.relative_to(own.root)
        theirs, ours = ({f.name: f.type for f in pq.read_schema(Path(root) / name)} for root in (own.root, folder))
        print(f"{name}: {len(ours)} columns, {'the same as' if ours == theirs else 'other than'} LeRobot writes")


COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")


if __name__ == "__main__":
    {"robomimic": robomimic, "lerobot": lerobot}[sys.argv[1]](sys.argv[2])
