"""A teacher out of an rsl_rl checkpoint, once, so that later runs need no torch; or the student of a distillation.

jdistill convert model_1499.pt teacher.safetensors --output_activation tanh
"""

from __future__ import annotations

from pathlib import Path

from jdistill.cli.parser import Parser, positive
from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.networks import summary
from jdistill.export.brax_checkpoint import load_brax_checkpoint
from jdistill.export.brax_files import find_brax_checkpoint
from jdistill.export.policy_file import save_policy
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(
        prog="jdistill convert",
        description="A teacher out of a checkpoint of rsl_rl, rl_games, skrl or Brax, as a policy file.",
    )
    what = "rsl_rl's .pt file or run folder, or latest; or Brax's folder"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=what)
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
    parser.add_argument("--student", action="store_true", help="the student of a distillation's checkpoint instead")
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    from jdistill.run.policy_paths import named_file

    asked = args.activation, args.output_activation
    if found := find_brax_checkpoint(Path(args.checkpoint)):
        policy, state, header = load_brax_checkpoint(found, *asked)
    else:
        role, file = "student" if args.student else "teacher", named_file("CHECKPOINT", args.checkpoint)
        policy, state, header = load_teacher_checkpoint(file, args.num_actions, *asked, role=role)
    save_policy(args.out, policy, state, header)
    print(f"{args.out}: {summary(policy, state, header['obs_size'])}")
