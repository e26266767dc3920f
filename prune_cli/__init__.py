"""prune-cli removes channels at random, reproducibly, from any PyTorch checkpoint.

The tour, from the bottom up; each file imports only what stands above it here:

    errors.py       what can go wrong, and the exit code of each
    jsontext.py     how JSON is laid out
    tensors.py      TensorInfo, and the arithmetic of headers
    selection.py    which parameters: glob patterns, amounts, recipes
    checkpoint/     any checkpoint as shards of TensorInfo, without reading the weights
    writer.py       files that appear whole or not at all, and streams
    destination.py  where the output goes: chosen, checked, begun
    pruning.py      the mathematics: RandomStructured, which channels go, zeroing them
    prunable.py     whether a tensor can be pruned, by its header
    inspection.py   what is in a checkpoint: inspect_checkpoint
    plan.py         which channels of which tensors: Plan, PlanItem, make_plan
    replay.py       plans that draw nothing: the channels of a report, masks that are there
    report.py       Report, a plan and what came of it, to JSON and back
    comparison.py   several reports side by side
    outputs.py      which tensors the output holds, in which files
    stream.py       the bytes, piece by piece, from the checkpoint to the output
    staging.py      folders that are complete or can be resumed
    apply.py        a plan onto a checkpoint: prune_checkpoint, apply_report, remove_masks
    verify.py       a file against its plan: verify_checkpoint (differences.py: where two differ)
    shrink/         the channels really go: shrink_checkpoint, load_shrunk
    page.py         reports as a page of HTML
    console.py      tables and progress
    cli/            the command line: a file for each command, the options in groups

The names below are the public ones; each is imported when it is first used, so that
`import prune_cli` does not import torch.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as typing has it, whose import takes longer than all else here
if TYPE_CHECKING:
    from prune_cli.api import apply_report as apply_report
    from prune_cli.api import prune_checkpoint as prune_checkpoint
    from prune_cli.api import remove_masks as remove_masks
    from prune_cli.checkpoint import Loading as Loading
    from prune_cli.checkpoint import open_checkpoint as open_checkpoint
    from prune_cli.errors import AmountError as AmountError
    from prune_cli.errors import AmountTypeError as AmountTypeError
    from prune_cli.errors import DeviceError as DeviceError
    from prune_cli.errors import DimError as DimError
    from prune_cli.errors import InputError as InputError
    from prune_cli.errors import OutputError as OutputError
    from prune_cli.errors import ParameterError as ParameterError
    from prune_cli.errors import PruneError as PruneError
    from prune_cli.errors import RequestError as RequestError
    from prune_cli.errors import SelectionError as SelectionError
    from prune_cli.errors import UsageError as UsageError
    from prune_cli.errors import VerificationError as VerificationError
    from prune_cli.inspection.inspect import inspect_checkpoint as inspect_checkpoint
    from prune_cli.memory import load_masked as load_masked
    from prune_cli.memory import prune_state_dict as prune_state_dict
    from prune_cli.module import RandomStructured as RandomStructured
    from prune_cli.module import random_structured as random_structured
    from prune_cli.plan.draw import make_plan as make_plan
    from prune_cli.plan.facts import Options as Options
    from prune_cli.plan.selection import Rule as Rule
    from prune_cli.report.comparison import compare_reports as compare_reports
    from prune_cli.report.finding import read_reports as read_reports
    from prune_cli.report.report import Report as Report
    from prune_cli.report.report import read_report as read_report
    from prune_cli.show.page import render_page as render_page
    from prune_cli.shrink.load import load_shrunk as load_shrunk
    from prune_cli.shrink.shrink import shrink_checkpoint as shrink_checkpoint
    from prune_cli.sweep.twin import sweep as sweep
    from prune_cli.verify.verify import verify_checkpoint as verify_checkpoint

_HOMES = {
    "AmountError": "errors",
    "AmountTypeError": "errors",
    "DeviceError": "errors",
    "DimError": "errors",
    "InputError": "errors",
    "Loading": "checkpoint",
    "Options": "plan.facts",
    "OutputError": "errors",
    "ParameterError": "errors",
    "PruneError": "errors",
    "RandomStructured": "module",
    "Report": "report.report",
    "RequestError": "errors",
    "Rule": "plan.selection",
    "SelectionError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "apply_report": "api",
    "compare_reports": "report.comparison",
    "inspect_checkpoint": "inspection.inspect",
    "load_masked": "memory",
    "load_shrunk": "shrink.load",
    "make_plan": "plan.draw",
    "open_checkpoint": "checkpoint",
    "prune_checkpoint": "api",
    "prune_state_dict": "memory",
    "random_structured": "module",
    "read_report": "report.report",
    "read_reports": "report.finding",
    "remove_masks": "api",
    "render_page": "show.page",
    "shrink_checkpoint": "shrink.shrink",
    "sweep": "sweep.twin",
    "verify_checkpoint": "verify.verify",
}

__all__ = [*_HOMES]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not isinstance(found, type):
        from prune_cli.spelling import for_python

        found = for_python(found)
    return globals().setdefault(name, found)  # a room of that name is there already


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
