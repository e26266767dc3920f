"""A signal between any two lines of a run; more of them by `python -m tests.signals`.

See also: tests/cli/test_signals.py, which sends signals from outside.
"""

import os
from pathlib import Path

import pytest

from tests.signals import interrupt


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a run is a fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signal_leaves_the_old_output_or_the_new_one(tmp_path: Path) -> None:
    """A hundred moments in files, folders and shards; what can be resumed ends in the same bytes."""
    assert list(interrupt(tmp_path, 100, seed=0)) == []
