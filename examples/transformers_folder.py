"""A model folder of `transformers`, in shards: pruned from the shell, and loaded as it was.

    python examples/transformers_folder.py [FOLDER]

The model is a tiny Llama with random weights, so nothing is downloaded; a real one takes the same
command.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging


def main() -> None:
    """Saves, prunes, loads and compares."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    source, pruned = folder / "model", folder / "pruned"
    logging.disable_progress_bar()
    save_tiny_llama(source)
    print("saved:", ", ".join(sorted(path.name for path in source.iterdir())))

    command = ["prune-cli", "random-structured", str(source), "--output", str(pruned)]
    subprocess.run(
        [*command, "--module", "model.layers.*.mlp.*", "--amount", "25%", "--dim", "0"], check=True
    )

    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    model = AutoModelForCausalLM.from_pretrained(pruned)
    for name, weight in model.state_dict().items():
        changed = (weight != before[name]).flatten(1).any(dim=1) if weight.dim() > 1 else []
        if any(changed):
            zero = int((weight == 0).all(dim=1).sum())
            print(f"{name}: {int(changed.sum())} channels changed, {zero} are zero")

    tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False)
    print("it still generates:", tokens.tolist()[0])


def save_tiny_llama(folder: Path) -> None:
    """Saves a Llama of 40 thousand parameters in shards of at most 50 kB."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="50KB")


if __name__ == "__main__":
    main()
