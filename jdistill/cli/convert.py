"""A teacher out of an rsl_rl checkpoint, once, so that later runs need no torch.

python -m jdistill.convert model_1499.pt teacher.safetensors --output_activation tanh
"""

from __future__ import annotations

import sys
from pathlib import Path

from jdistill.cli.parser import Parser, positive
from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.networks import summary
from jdistill.errors import PolicyFileError
from jdistill.export.policy_file import save_policy
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint


def main(argv: list[str]) -> int:
    """The command."""
    parser = Parser(prog="jdistill convert", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="rsl_rl's .pt file")
    parser.add_argument("out", type=Path, metavar="FILE", help="the .safetensors policy to write")
    said = "default: what params/agent.yaml beside it says, else"
    parser.add_argument("--activation", type=str.lower, choices=list(ACTIVATIONS), help=f"hidden layers' ({said} elu)")
    parser.add_argument(
        "--output_activation",
        type=str.lower,
        choices=list(OUTPUT_ACTIVATIONS),
        help=f"what ends the network ({said} identity; checkpoints of rsl_rl 2.x and 3.x need it said)",
    )
    parser.add_argument(
        "--num_actions", type=positive, help="where the last layer holds a state-dependent deviation beside the actions"
    )
    args = parser.parse_args(argv)
    try:
        policy, state, header = load_teacher_checkpoint(
            args.checkpoint, args.num_actions, args.activation, args.output_activation
        )
        save_policy(args.out, policy, state, header)
    except PolicyFileError as e:
        print(f"jdistill convert: error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"jdistill convert: error: {args.out}: {e.strerror}", file=sys.stderr)
        return 1
    print(f"{args.out}: {summary(policy, state, header['obs_size'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
