"""Heads of attention."""

from __future__ import annotations

from prune_cli.amounts import Amount
from prune_cli.errors import RequestError
from prune_cli.shrink.step import Step, Work


def plan_heads(work: Work, amount: Amount) -> Step:
    """Return what goes with heads."""
    raise RequestError("heads cannot be removed yet")


def plan_head_dim(work: Work, amount: Amount) -> Step:
    """Return what goes with dims of heads."""
    raise RequestError("dims of heads cannot be removed yet")
