"""What went, read from a report with nothing but the standard library.

    prune-cli random-structured model.pt --amount 0.25 --dry-run --report - | \
        python examples/read_report.py

A report is the plan and what came of it: enough to check a run in CI, to log it, or to draw it.
"""

import json
import sys
from collections import Counter


def main() -> None:
    """Reads a report from stdin and shows it in four ways."""
    report = json.load(sys.stdin)
    totals = report["totals"]
    print(f"{totals['channels_pruned']} of {totals['channels']} channels went", end=", ")
    print(f"{totals['sparsity']:.1%} of the elements are zero")

    for row in report["tensors"]:
        gone = set(row["already_pruned"]) | set(row["pruned"])
        picture = "".join("." if channel in gone else "#" for channel in range(row["channels"]))
        print(f"{row['name']:>12} {picture}")

    dtypes = Counter(row["dtype"] for row in report["tensors"])
    print("dtypes:", ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()))
    for skip in report["skipped"]:
        print(f"left alone: {skip['name']} ({skip['reason']})")


if __name__ == "__main__":
    main()
