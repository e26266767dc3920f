#!/usr/bin/env bash
# A release gate for any CI: no release of a model that breaks when a tenth of it is pruned.
#
#     bash examples/gate.sh [FOLDER]
#
# The first assertion holds, so the pruned checkpoint is made and proved. The second one is too
# strict: the exit code is 7, on which a CI job fails. Its sweep evaluates nothing again (--resume).
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)
cd "${1:-$(mktemp -d)}"

gate() {
    prune-cli sweep "$examples/digits.pt" --amount 0.1 --seeds 3 --dim 0 --exclude digit \
        --eval "python '$examples/evaluate_digits.py' {model}" --output gate --quiet "$@"
}

gate --assert 'mean(accuracy)@0.1 >= base - 5'
cat gate/summary.md
prune-cli random-structured "$examples/digits.pt" --amount 0.1 --dim 0 --exclude digit \
    --output release.safetensors --quiet
prune-cli verify release.safetensors "$examples/digits.pt"

gate --resume --assert 'mean(accuracy)@0.1 >= base - 1' || echo "exit code $?"
