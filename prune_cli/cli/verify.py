"""`prune-cli verify`: a pruned checkpoint against its report and its source."""

import time
from typing import Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.completion import complete_report
from prune_cli.cli.grouped import grouped
from prune_cli.cli.locations import Location, locate, locate_checkpoint
from prune_cli.cli.spreading import Scheduled
from prune_cli.errors import UsageError, VerificationError

CHECKED = "What is checked"

Pruned = Annotated[
    Location,
    typer.Argument(
        parser=locate_checkpoint, metavar="OUTPUT", help="What prune-cli wrote: a file or a folder."
    ),
]
ItsReport = Annotated[
    Location | None,
    typer.Option(
        "--report",
        "-r",
        parser=locate,
        metavar="FILE",
        help="Its report.",
        show_default="found beside it",
        autocompletion=complete_report,
        rich_help_panel=CHECKED,
    ),
]
SourcePath = Annotated[
    Location | None,
    typer.Argument(
        parser=locate_checkpoint,
        metavar="SOURCE",
        help="The checkpoint that was pruned, as --source.",
        show_default=False,
    ),
]
Source = Annotated[
    Location | None,
    typer.Option(
        "--source",
        parser=locate_checkpoint,
        metavar="PATH",
        help="The checkpoint that was pruned. With it every byte is compared, without it only "
        "what the report names.",
        rich_help_panel=CHECKED,
    ),
]

Scores = Annotated[
    Location | None,
    typer.Option(
        "--scores",
        parser=locate,
        metavar="FILE",
        help="The score file, where the channels were chosen by one.",
        rich_help_panel=CHECKED,
    ),
]


@grouped
def verify(
    output: Pruned,
    workers: groups.Workers,
    scheduled: Scheduled,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
    source_path: SourcePath = None,
    report: ItsReport = None,
    source: Source = None,
    scores: Scores = None,
) -> None:
    """Check a pruned checkpoint against its report and its source.

    It lists whatever disagrees, and exits with 5 then.

    Examples:
        prune-cli verify model.pruned.safetensors
        prune-cli verify model.pruned.safetensors model.pt
        prune-cli verify llama.pruned/ llama/ --json
    """
    from prune_cli.cli.opening import put_pruned_first
    from prune_cli.report.finding import find_report
    from prune_cli.show.console import write_stdout
    from prune_cli.show.progress import progress
    from prune_cli.show.verification import show_verification
    from prune_cli.verify.verify import to_json, verify_checkpoint

    if source and source_path:
        raise UsageError(f"the source is named twice: {source_path} and --source {source}")
    source = source or source_path
    report = None if report is None else find_report(report)
    if source and report is None:
        output, source = put_pruned_first(output, source, messages, "OUTPUT comes before SOURCE")
    began = time.perf_counter()
    nbytes = _nbytes(output) if source else 0
    showing = progress(nbytes, quiet=messages.quiet, doing="comparing", before="reading")
    with (
        signals.Orderly(),
        showing as on_tensor,
        scheduled.comparing(output, source, messages) as engine,
    ):
        verification = verify_checkpoint(
            output,
            report=report,
            source=source,
            scores=scores,
            loading=loading.chosen(),
            workers=(workers.workers or 1) if engine else workers.execution().threads,
            on_tensor=on_tensor,
            engine=engine,
        )
    if messages.verbose:
        messages.tell(f"read {output}{f' and {source}' if source else ''}", since=began)
    if shown.as_json:
        write_stdout(to_json(verification))
    show_verification(verification, quiet=messages.quiet)
    if not verification.is_verified:
        raise VerificationError(f"{output}: {len(verification.disagreements)} disagreement(s)")


def _nbytes(output: Location) -> int:
    """Return the bytes of the weights at `output`, as far as that shows from outside."""
    files: list[Location] = [*output.iterdir()] if output.is_dir() else [output]
    weights = [file for file in files if file == output or file.suffix == ".safetensors"]
    return sum(file.stat().st_size for file in weights if file.is_file())
