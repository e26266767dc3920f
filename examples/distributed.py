"""A folder of torch.distributed.checkpoint, as FSDP training leaves one, pruned into one file.

    python examples/distributed.py [FOLDER]

prune-cli reads the folder as it is, however many ranks wrote it: no process group, no conversion.
The optimizer in it is no state dict, and is left out.
"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed import checkpoint


def main() -> None:
    """Save, prune, load."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 16)).square().mean().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves alone
        content = {"model": net.state_dict(), "optim": optimizer.state_dict()}
        checkpoint.save(content, checkpoint_id=folder / "step-100")

    pruned = folder / "pruned.safetensors"
    command = ["prune-cli", "random-structured", folder / "step-100", "--output", pruned]
    subprocess.run([*command, "--amount", "0.25", "--dim", "0", "--quiet"], check=True)
    subprocess.run(["prune-cli", "verify", pruned, folder / "step-100"], check=True)

    net.load_state_dict(load_file(pruned))
    for name, layer in (("0", net[0]), ("2", net[2])):
        zero = int((layer.weight == 0).all(1).sum())
        print(f"{name}.weight: {zero} of {len(layer.weight)} rows are zero")


if __name__ == "__main__":
    main()
