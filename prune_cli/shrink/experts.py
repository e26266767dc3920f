"""Experts of a mixture: which go, with their rows of the router."""

from __future__ import annotations

from prune_cli.amounts import Amount
from prune_cli.errors import RequestError
from prune_cli.shrink.step import Step, Work


def plan_experts(work: Work, amount: Amount) -> Step:
    """Return what goes with experts."""
    raise RequestError("experts cannot be removed yet")
