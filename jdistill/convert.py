"""A teacher out of an rsl_rl checkpoint, once, so that later runs need no torch.

python -m jdistill.convert model_1499.pt teacher.safetensors --output_activation tanh
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jdistill.interop.rsl_rl import load_teacher_checkpoint
from jdistill.networks import ACTIVATIONS
from jdistill.policy_file import PolicyFileError, save_policy


def main(argv: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m jdistill.convert", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="rsl_rl's .pt file")
    parser.add_argument("out", type=Path, metavar="FILE", help="the .safetensors policy to write")
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="elu", help="of the hidden layers (elu)")
    parser.add_argument(
        "--output_activation", choices=list(ACTIVATIONS), default="identity", help="of the output (identity)"
    )
    parser.add_argument(
        "--num_actions", type=int, help="where the last layer holds a state-dependent deviation beside the actions"
    )
    args = parser.parse_args(argv)
    try:
        policy, state, header = load_teacher_checkpoint(
            args.checkpoint, args.activation, args.output_activation, args.num_actions
        )
        save_policy(args.out, policy, state, header)
    except (PolicyFileError, OSError) as e:
        print(f"jdistill.convert: error: {e}", file=sys.stderr)
        return 1
    memory = f"{policy.rnn_type} {policy.rnn_hidden_dim}, " if policy.rnn_type else ""
    layers = "-".join(str(width) for width in (*policy.hidden_dims, policy.num_actions))
    normalizer = "with" if state.normalizer else "without"
    print(f"{args.out}: {header['obs_size']} observations, {memory}{layers}, {normalizer} normaliser")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
