#!/usr/bin/env bash
# Another amount and dim for each layer: a recipe, first looked at and then carried out.
#
#     bash examples/per_layer.sh [FOLDER]
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)/per_layer.toml
cd "${1:-$(mktemp -d)}"

python -c '
import torch
from torch import nn
model = nn.ModuleDict({
    "features": nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3)),
    "classifier": nn.Linear(32, 10),
})
torch.save(model.state_dict(), "model.pt")'

prune-cli random-structured model.pt --recipe "$recipe" --amount 10% --dry-run
prune-cli random-structured model.pt --recipe "$recipe" --amount 10% --output pruned.safetensors
