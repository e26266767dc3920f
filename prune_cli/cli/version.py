"""The versions of prune-cli and torch, and the devices; where torch cannot be imported, why."""

from importlib import metadata

import prune_cli


def describe_version() -> str:
    """Return one line.

    Example:
        >>> describe_version()
        'prune-cli 0.2.0 (torch 2.13.0; devices: cpu)'
    """
    return f"prune-cli {prune_cli.__version__} ({_describe_torch()})"


def _describe_torch() -> str:
    try:
        from prune_cli.write.accelerator import available_devices

        return f"torch {_torch_version()}; devices: {', '.join(available_devices())}"
    except (ImportError, OSError) as error:  # OSError: a library that does not load
        version = _torch_version()
        if version is None:
            return "torch is not installed; devices: cpu"
        reason = str(error).partition("\n")[0]
        return f"torch {version}, which cannot be imported: {reason}; devices: cpu"


def _torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
