"""``jdistill COMMAND``: the commands beside training. Only the one that is asked for is imported."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "runs": "list the runs and how far they got",
    "evaluate": "what a run's student is worth, in numbers",
    "report": "a run's curves, numbers and flights on one HTML page",
    "play": "a film of a run's student beside its teacher",
    "export": "a run's student as ONNX, TorchScript, safetensors or for rsl_rl",
    "convert": "an rsl_rl checkpoint as a policy that needs no torch",
    "dataset": "what is in a recording",
}

MODULES = {
    "runs": "jdistill.run.folders",
    "evaluate": "jdistill.evaluation.evaluate",
    "report": "jdistill.evaluation.report",
    "play": "jdistill.evaluation.play",
    "export": "jdistill.cli.export",
    "convert": "jdistill.cli.convert",
    "dataset": "jdistill.data.dataset",
}


def main() -> int:
    """Run the command that the command line names; returns its exit status."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: jdistill COMMAND ..., where COMMAND --help says more\n")
        print("\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        from jdistill.errors import nearest

        hint = f"{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}"
        print(f"jdistill: error: no command {name}{hint}", file=sys.stderr)
        return 2
    return importlib.import_module(MODULES[name]).main(arguments)


if __name__ == "__main__":
    sys.exit(main())
