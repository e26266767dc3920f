"""What people write today: the whole checkpoint in memory, and stock torch on every tensor of it.

python stock_script.py INPUT OUTPUT AMOUNT DIM
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

source, output, amount, dim = sys.argv[1:]

tensors = load_file(source)
torch.manual_seed(0)
for name, tensor in tensors.items():
    if tensor.dim() > 1:
        module = nn.Module()
        module.weight = nn.Parameter(tensor)
        prune.random_structured(module, "weight", amount=float(amount), dim=int(dim))
        prune.remove(module, "weight")
        tensors[name] = module.weight.detach()
save_file(tensors, output, metadata={"format": "pt"})
