"""Shorten a case that fails: leave out tokens as long as the same fault is there."""

from tests.fuzz.changes import Tokens
from tests.fuzz.subjects import Subject
from tests.fuzz.watch import Finding, run_tokens


def minimise(finding: Finding, subject: Subject, *, most_runs: int = 600) -> Tokens:
    """Return the fewest tokens found with the fault of `finding`, by halves, quarters and so on."""
    tokens = finding.case.damaged(subject)
    size, runs = max(len(tokens) // 2, 1), 0
    while size and runs < most_runs:
        at, shortened = 0, False
        while at < len(tokens) and runs < most_runs:
            fewer = [*tokens[:at], *tokens[at + size :]]
            found = run_tokens(subject, fewer, finding.case.generator)
            runs += 1
            if isinstance(found, tuple) and found[0] == finding.fault:
                tokens, shortened = fewer, True
            else:
                at += size
        if not shortened or size > 1:
            size //= 2
    return tokens
