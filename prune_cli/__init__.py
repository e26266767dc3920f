"""prune-cli removes channels at random, reproducibly, from any PyTorch checkpoint.

    >>> import prune_cli
    >>> report = prune_cli.prune_checkpoint("model.pt", "pruned.safetensors", amount=0.25, dim=0)
    >>> report.tensors[0].pruned                         # the channels that went
    (5, 10, 13, 14)

A checkpoint is a file or a folder, of any format that PyTorch users have. From the shell the same
is `prune-cli random-structured model.pt --amount 0.25 --dim 0`. What else there is, by what you have:

    a checkpoint    prune_checkpoint, inspect_checkpoint, verify_checkpoint, shrink_checkpoint, sweep
    with masks      remove_masks; load_masked puts the masks on your module
    a report        apply_report, read_report, read_reports, compare_reports, render_page
    a module        random_structured, RandomStructured, as torch.nn.utils.prune has them;
                    shrink_module
    a state dict    prune_state_dict
    a shrunk file   load_shrunk

Every error is a PruneError that names the thing, the fact and the remedy. `help(prune_cli.sweep)`,
and so on, says the rest; no name imports torch before it is used, and those of checkpoints never do.

The tour of the code, from the bottom up; a room imports only what stands above it here:

    errors.py           every error that a user can cause, and its exit code
    amounts.py          3 channels, 0.25 or 25% of them: what people write and mean
    jsontext.py         how JSON is laid out, and facts read back from it
    spelling.py         what messages call --force, in the words of Python
    stores/             REACH: objects in a store, by URL: their facts, and ranges of their bytes
    cluster/            who runs units of work: threads, a cluster, the jobs of an array
    checkpoint/         READ: any checkpoint as shards of TensorInfo, from its headers
    channels.py         which channels go, and how they become zero: on bits, by NumPy
    torch_channels.py   the same on tensors of torch
    module.py           RandomStructured: on the parameters of a module
    plan/               DECIDE: which channels of which tensors, before any weight flows
    write/              WRITE: the bytes, in one pass, to a file, a folder or a stream
    report/             TELL: a plan and what came of it, to JSON and back
    verify/             PROVE: an output is what its report says, byte for byte
    inspection/         LOOK: what is in a checkpoint; where two differ
    api.py              the one pipeline, carry_out: open, decide, write, tell
    memory.py           the same for what is in memory: state dicts, masks on modules
    sweep/              REPEAT: many draws, each evaluated, and what they say together
    shrink/             REMOVE: the channels really go, with all that is coupled to them
    show/               SHOW: tables, progress, figures, pages
    cli/                CLI: a file for each command, the options in groups
    __main__.py         where the process begins and ends
"""

__version__ = "0.2.0"

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
    from prune_cli.errors import SchedulerError as SchedulerError
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
    from prune_cli.shrink.in_memory import shrink_module as shrink_module
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
    "SchedulerError": "errors",
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
    "shrink_module": "shrink.in_memory",
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
