"""Without Torch-Pruning, which they are held against, these tests are skipped and say so."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder."""
    if find_spec("torch_pruning"):
        return
    reason = "torch-pruning is not installed: pip install 'prune-cli[test]'"
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))
