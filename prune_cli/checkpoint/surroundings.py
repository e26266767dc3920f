"""What is in a folder beside its checkpoint, and what it is where it holds none.

See also: `layouts`, the files of the checkpoint itself.
"""

import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path

from prune_cli.checkpoint.layouts import find_layout
from prune_cli.errors import InputError
from prune_cli.stores import Location, name_within

STAGING = ".prune-cli-partial"
"""The folder in an output folder that holds what a run has not finished yet."""

FOLDER_REPORT = "prune-report.json"
"""What the report is called inside an output folder."""

_OTHER_FORMS = (
    *("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "adapter_model*.bin"),
    *("*.bin.index.json", "*.bin.index.*.json", "consolidated*.pth", "consolidated*.safetensors"),
    *("consolidated*.safetensors.index.json", "tf_model*.h5", "flax_model*.msgpack"),
    *("diffusion_flax_model*.msgpack", "rust_model.ot", "*.gguf", "*.onnx", "*.onnx_data"),
    *("openvino_model*.bin", "openvino_model*.xml"),
)
"""Weights of the same model under the names of other libraries, at the top of a folder."""

_OTHER_FOLDERS = ("original", "onnx", "openvino", "metal", "coreml")
_ENDINGS = (
    ".pth",
    ".pt",
    ".bin",
    ".safetensors",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
)

_TORCH = re.compile(r".+\.(pt|pth|ckpt)")
_NO_WEIGHTS = re.compile(r"(optimizer|scheduler|rng_state|training_args|scaler|random_states).*")
_MOST_NAMES = 8


def other_forms(files: Sequence[str]) -> list[str]:
    """Return those of `files`, relative to a model's folder, that are the model in another form."""
    return [file for file in files if _is_other_form(file)]


def _is_other_form(file: str) -> bool:
    top, _, rest = file.partition("/")
    if rest:
        return top in _OTHER_FOLDERS and rest.endswith(_ENDINGS)
    return any(fnmatchcase(file, pattern) for pattern in _OTHER_FORMS)


def list_files(folder: Location) -> list[str]:
    """Return every file and link below `folder`, but for what an unfinished run left.

    Raises:
        OSError: a folder in it cannot be read, so not all are known.
    """
    paths = _walk(folder) if isinstance(folder, Path) else folder.rglob("*")
    names = (name_within(path, folder) for path in paths if path.is_symlink() or path.is_file())
    return sorted(name for name in names if STAGING not in name.split("/"))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all that is below `folder`: rglob passes over folders that it may not read."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def find_outputs(folder: Location, names: Sequence[str]) -> list[str]:
    """Return those of `names` that reports of prune-cli in `folder` name as their output."""
    found: set[str] = set()
    for name in names:
        if name.endswith(".report.json"):
            found |= {_output_of(folder / name)}
    return [name for name in names if name in found]


def _output_of(report: Location) -> str:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        if content["tool"]["name"] == "prune-cli":
            return str(content["output"]["path"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        pass
    return ""


def list_unpruned(files: Sequence[str]) -> list[str]:
    """Return those of `files` that are weights by their names, and not of this checkpoint."""
    return [
        file
        for file in files
        if file.endswith(".safetensors") or _is_other_form(file.rpartition("/")[2])
    ]


def is_torch_file(name: str) -> bool:
    """Return whether a file is called as torch.save's are."""
    return bool(_TORCH.fullmatch(name))


def find_torch_file(folder: Location, names: Sequence[str]) -> str | None:
    """Return the one file of torch.save among `names`, by its name; None if there is none.

    Raises:
        InputError: there are several.
    """
    found = [name for name in names if _TORCH.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name)]
    if len(found) > 1:
        shown = ", ".join(found[:_MOST_NAMES]) + (", ..." if len(found) > _MOST_NAMES else "")
        raise InputError(
            f"{folder} holds {len(found)} checkpoints: {shown}; name the file that you mean "
            "instead of the folder"
        )
    return found[0] if found else None


# --- a folder without a checkpoint -----------------------------------------------------------


def subfolders_with_checkpoints(folder: Location) -> list[str]:
    """Return the folders directly in `folder` that hold a checkpoint, or several.

    Outputs of prune-cli, which hold its report, are not among them while they keep their name.
    """
    return [
        entry.name
        for entry in _entries(folder)
        if entry.is_dir() and entry.name not in (STAGING, *_OTHER_FOLDERS)
        if _output_of(entry / FOLDER_REPORT) != entry.name and _has_one(entry)
    ]


def _entries(folder: Location) -> list[Location]:
    return sorted(folder.iterdir(), key=attrgetter("name"))


def _has_one(folder: Location) -> bool:
    names = sorted(entry.name for entry in folder.iterdir())
    try:
        return (find_layout(folder, names) or find_torch_file(folder, names)) is not None
    except InputError:
        return True


def describe(folder: Location, names: Sequence[str]) -> str:
    """Return what `folder` is, if it holds no checkpoint itself, and what to name instead."""
    return next(_descriptions(folder, names))


def _descriptions(folder: Location, names: Sequence[str]) -> Iterator[str]:
    inner = subfolders_with_checkpoints(folder)
    if "model_index.json" in names and inner:
        yield (
            f"{folder} is a diffusers pipeline, whose weights are in {_list(inner)}; choose with "
            f"--subfolder {inner[-1]!r}, or '*' for all"
        )
    if "snapshots" in names and (folder / "snapshots").is_dir():
        yield _describe_cache(folder)
    models = [name for name in names if name.startswith("models--")]
    if models:
        yield (
            f"{folder} is a cache of the Hugging Face Hub; name a snapshot in it: "
            f"{_list([f'{folder / name}/snapshots/REVISION' for name in models])}"
        )
    if inner:
        yield (
            f"{folder} holds no checkpoint itself, but there is one in {_list(inner)}; name that "
            f"folder, or choose with --subfolder {inner[0]!r}"
        )
    if not names:
        yield f"{folder} holds no checkpoint: it is empty"
    yield (
        f"{folder} holds no checkpoint: no *.safetensors, pytorch_model.bin or index of shards, "
        f"but {_list(names)}"
    )


def _describe_cache(folder: Location) -> str:
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if not snapshots:
        return f"{folder} is a cache of the Hugging Face Hub without a snapshot; download it again"
    head = folder / "refs" / "main"
    revision = head.read_text(encoding="utf-8", errors="replace").strip() if head.is_file() else ""
    names = [path.name for path in snapshots]
    best = revision if revision in names else names[-1]
    return (
        f"{folder} is a cache of the Hugging Face Hub with {len(names)} snapshot(s); name "
        f"{folder / 'snapshots' / best}"
    )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
