"""The help of a command: its docstring, and below the options what holds for every command."""

import inspect

_EXIT_CODES = (
    "[bold]Exit codes:[/] 0 done, 1 a bug, 2 usage, 3 input, 4 the request does not fit, "
    "5 differences, 6 output, 7 trials failed, 130 interrupted"
)
_READ_ON = (
    "[bold]Read on:[/] the README has every command with its output. Every option can be set in "
    "the environment: PRUNE_CLI_SEED is --seed"
)


def write_help(docstring: str) -> tuple[str, str]:
    """Return the help of a command and its epilog; the examples of its docstring go to the end."""
    about, _, examples = inspect.cleandoc(docstring).partition("\nExamples:\n")
    return about.strip(), write_epilog(*inspect.cleandoc(examples).splitlines())


def write_epilog(*examples: str) -> str:
    """Return what stands below the options: exit codes, where to read on, and examples."""
    shown = "\n".join(f"  {example}" for example in examples)
    return f"{_EXIT_CODES}\n\n{_READ_ON}\n\n[bold]Examples:[/]\n{shown}"
