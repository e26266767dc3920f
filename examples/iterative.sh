#!/usr/bin/env bash
# Pruning a little at a time: each step takes a fifth of the channels that are still there.
#
#     bash examples/iterative.sh [FOLDER]
#
# First as one pipeline, with no files between the steps; then as a loop that keeps the report of
# each, between whose steps you would train on. Both end at the same bytes.
set -euo pipefail
cd "${1:-$(mktemp -d)}"

python -c '
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100))
torch.save(model.state_dict(), "model.pt")'

prune() { prune-cli random-structured "$@" --amount 20% --dim 0 --quiet; }

prune model.pt --seed 1 -o - | prune - --seed 2 -o - | prune - --seed 3 -o pipeline.safetensors

ln -s model.pt step0
for step in 1 2 3; do
    prune "step$((step - 1))" --seed "$step" -o "step$step" -r "step$step.json"
    python -c '
import json, sys
totals = json.load(open(sys.argv[1]))["totals"]
print(sys.argv[1], "sparsity", round(totals["sparsity"], 3))' "step$step.json"
done

cmp pipeline.safetensors step3 && echo "the pipeline and the loop end at the same bytes"
