#!/usr/bin/env bash
# The figure of a pruning paper: accuracy over the amount, five draws each, two ways to prune.
#
#     bash examples/sweep.sh [FOLDER]
#
# evaluate_digits.py is the evaluation; here it is run 42 times, two at a time.
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)
cd "${1:-$(mktemp -d)}"

sweep() {
    prune-cli sweep "$examples/digits.pt" --amount 0.1,0.25,0.5,0.75 --seeds 5 --exclude digit \
        --eval "python '$examples/evaluate_digits.py' {model}" --jobs 2 "$@"
}

sweep --dim 0 --output rows --assert 'mean(accuracy)@0.1 >= base - 10'
sweep --dim 1 --output columns --quiet
prune-cli report rows columns --html both.html --plot both.png
