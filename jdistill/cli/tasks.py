"""The tasks that can be trained on."""

from __future__ import annotations

from bridge import registry
from jdistill.cli.parser import Parser


def make_parser() -> Parser:
    """Every argument."""
    return Parser(prog="jdistill tasks", description="List the tasks that --task can name, with their simulators.")


def run(argv: list[str]) -> None:
    """The command."""
    make_parser().parse_args(argv)
    names = registry.task_names()
    width = max(map(len, names))
    print("\n".join(f"{name:{width}}  {sim}" for name, sim in names.items()))
    print("\nand any function that makes an environment: package.module:function, path/to/file.py:function")
    simulators = registry.simulators().values()
    for simulator in simulators:
        if simulator.open_ended:
            print(f"and every task that is registered with {simulator.title}, by its name there")
    if missing := [simulator for simulator in simulators if not registry.is_installed(simulator)]:
        how = (f"{x.title} ({f'--extra {x.extra}' if x.extra else x.package})" for x in missing)
        print(f"\nNot installed: {', '.join(how)}")
