"""From what a user names to a report: its file, the folder that holds it, or the pruned file."""

from collections.abc import Iterable

from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.errors import InputError
from prune_cli.report.report import Report, read_report
from prune_cli.stores import Location, locate
from prune_cli.write.target import report_path


def find_report(path: Location) -> Location:
    """Return the report that `path` means: itself, or that of a pruned folder or file.

    Raises:
        InputError: there is no report in the folder or beside the file.
    """
    if not path.is_dir() and (not path.is_file() or _may_be_json(path)):
        return path  # stdin, a pipe, and what is not there
    found = report_path(path, is_folder=path.is_dir())
    if not found.is_file():
        raise InputError(
            f"{path} is not a report of prune-cli, and has none: {found} does not exist"
        )
    return found


def _may_be_json(path: Location) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix == ".json" or file.read(64).lstrip().startswith(b"{")
    except OSError:
        return True  # read_report says why it cannot be read


def read_reports(paths: str | Location | Iterable[str | Location]) -> dict[str, Report]:
    """Return the reports at `paths` by name; the second of a name is called "NAME (2)".

    A report is named after its file, or after its folder where all files are called alike. What is
    no report itself, a pruned folder or file, stands for the report that is with it.

    Raises:
        InputError: one of them cannot be read.
    """
    reports: dict[str, Report] = {}
    for path in [paths] if isinstance(paths, str | Location) else paths:
        found = find_report(locate(path))
        reports[_free(_name(found), reports)] = read_report(found)
    return reports


def _name(report: Location) -> str:
    folder = report.resolve().parent.name
    return folder if report.name == FOLDER_REPORT and folder else report.name


def _free(name: str, taken: Iterable[str]) -> str:
    numbered, number = name, 1
    while numbered in taken:
        number += 1
        numbered = f"{name} ({number})"
    return numbered
