"""Folders of torch.distributed.checkpoint, without torch; the oracle is torch's own loader."""

import io
import os
import pickle
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as facts

from prune_cli import prune_checkpoint, verify_checkpoint
from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.errors import InputError
from tests import build

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns that one process is no cluster


def save(folder: Path, state: dict[str, Any]) -> Path:
    """What one process writes."""
    dcp.save(state, checkpoint_id=folder)
    return folder


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """The tensor called `name`."""
    return build.tensor(checkpoint, checkpoint.tensors[name])


def test_a_flat_state_dict_is_read(tmp_path: Path) -> None:
    """As FSDP's and torchtitan's models are saved."""
    checkpoint = open_checkpoint(save(tmp_path / "m", build.tensors()))

    assert checkpoint.format == "dcp"
    assert checkpoint.tensors.keys() == build.tensors().keys()
    for name, tensor in build.tensors().items():
        assert build.same_bits(read(checkpoint, name), tensor)


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    """Under the names of the model, without the optimizer."""
    net = build.Net()
    optimizer = torch.optim.Adam(net.parameters())
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}

    checkpoint = open_checkpoint(save(tmp_path / "m", state))

    assert checkpoint.tensors.keys() == net.state_dict().keys()
    assert {dropped.key for dropped in checkpoint.dropped} == {"optimizer", "step"}
    for name, tensor in net.state_dict().items():
        assert build.same_bits(read(checkpoint, name), tensor)


def test_several_state_dicts_are_an_ambiguity(tmp_path: Path) -> None:
    """Each can be picked, or all of them."""
    folder = save(tmp_path / "m", {"model": build.tensors(), "ema": build.tensors(1)})

    with pytest.raises(InputError, match="holds 2 state dicts.*'ema'"):
        open_checkpoint(folder)
    both = open_checkpoint(folder, Loading(("*",)))

    assert build.same_bits(read(both, "ema.fc.weight"), build.tensors(1)["fc.weight"])
    assert len(both.tensors) == 2 * len(build.tensors())


# --- Chunks, as several processes write them ---------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut: into so many chunks along each dim, dealt out to files."""

    parts: Sequence[int]
    files: int


def chunks(tensor: torch.Tensor, cut: Cut) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Each chunk and where in the tensor it begins."""
    bounds = [
        np.linspace(0, size, parts + 1).astype(int).tolist()
        for size, parts in zip(tensor.shape, cut.parts, strict=True)
    ]
    for index in product(*(range(parts) for parts in cut.parts)):
        spans = [(bounds[dim][at], bounds[dim][at + 1]) for dim, at in enumerate(index)]
        yield (
            tuple(start for start, _ in spans),
            tensor[tuple(slice(*span) for span in spans)].clone(),
        )


def save_cut(folder: Path, state: dict[str, torch.Tensor], cuts: dict[str, Cut]) -> Path:
    """What several processes would write, in the classes of torch."""
    folder.mkdir()
    files: dict[str, io.BytesIO] = {}
    entries, stored = {}, {}
    for name, tensor in state.items():
        cut = cuts.get(name, Cut((1,) * tensor.ndim, 1))
        found = []
        for number, (start, chunk) in enumerate(chunks(tensor, cut)):
            file = f"__{number % cut.files}_0.distcp"
            stream = files.setdefault(file, io.BytesIO())
            at = stream.tell()
            torch.save(chunk, stream)
            index = facts.MetadataIndex(name, torch.Size(start), number)
            stored[index] = filesystem._StorageInfo(file, at, stream.tell() - at)
            found.append(facts.ChunkStorageMetadata(torch.Size(start), chunk.size()))
        properties = facts.TensorProperties.create_from_tensor(tensor)
        entries[name] = facts.TensorStorageMetadata(properties, tensor.size(), found)
    whole = facts.Metadata(entries, {name: (name,) for name in state}, stored)
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    for file, stream in files.items():
        (folder / file).write_bytes(stream.getvalue())
    return folder


STATE = {
    "rows.weight": torch.randn(10, 6, generator=torch.Generator().manual_seed(1)),
    "columns.weight": torch.randn(6, 9).to(torch.bfloat16),
    "grid.weight": torch.arange(7 * 5 * 3.0).view(7, 5, 3),
    "bias": torch.randn(4),
    "step": torch.tensor(3),
}
CUTS = {
    "rows.weight": Cut((3, 1), 3),
    "columns.weight": Cut((1, 4), 2),
    "grid.weight": Cut((2, 2, 3), 4),
}


def test_the_chunks_are_what_torch_loads(tmp_path: Path) -> None:
    """The tensors put together are those of dcp.load, in any rows."""
    folder = save_cut(tmp_path / "m", STATE, CUTS)
    oracle = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    dcp.load(oracle, checkpoint_id=folder)

    checkpoint = open_checkpoint(folder)

    for name, tensor in oracle.items():
        info = checkpoint.tensors[name]
        assert build.same_bits(tensor, STATE[name])
        assert build.same_bits(read(checkpoint, name), tensor)
        if tensor.ndim:
            some = checkpoint.rows(info, 1, 4)
            assert some.tobytes() == bytes(build.octets(tensor[1:4]))
    assert len(checkpoint.tensors["grid.weight"].pieces) == 12


@pytest.mark.parametrize("dim", [0, 1])
def test_it_is_pruned_as_the_same_safetensors(tmp_path: Path, dim: int) -> None:
    """The channels are drawn from the whole shapes, and those pruned before are known."""
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state["rows.weight"][[2, 7]] = 0
    state["grid.weight"][:, 3] = 0
    save_cut(tmp_path / "m", state, CUTS)
    build.safetensors(tmp_path / "y", state)

    for name in "my":
        out = tmp_path / f"{name}.safetensors"
        prune_checkpoint(tmp_path / name, out, amount=0.5, dim=dim)

    found, wanted = (load_file(tmp_path / f"{name}.safetensors") for name in "my")
    assert found.keys() == wanted.keys()
    assert all(build.same_bits(found[name], wanted[name]) for name in wanted)


def test_it_is_cut_into_shards(tmp_path: Path) -> None:
    """To a folder of safetensors, as any checkpoint."""
    folder = save_cut(tmp_path / "m", STATE, CUTS)

    prune_checkpoint(folder, tmp_path / "out", amount=0.5, dim=0, max_shard_size=400)

    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert {name for shard in shards for name in load_file(shard)} == STATE.keys()


def edited(folder: Path, change: Any) -> None:
    """Change the metadata of a folder."""
    path = folder / ".metadata"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """The copy is incomplete."""
    folder = save_cut(tmp_path / "m", STATE, CUTS)
    (folder / "__2_0.distcp").unlink()

    with pytest.raises(InputError, match=r"names __2_0\.distcp, which is not there"):
        open_checkpoint(folder)


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    """Whatever is missing of it."""
    folder = save_cut(tmp_path / "m", STATE, CUTS)
    os.truncate(folder / "__1_0.distcp", 3000)

    with pytest.raises(InputError, match="corrupt or incomplete"):
        open_checkpoint(folder)


def test_chunks_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    """Every element has to come from somewhere, and from one place."""
    folder = save_cut(tmp_path / "m", STATE, CUTS)

    def lose(whole: facts.Metadata) -> facts.Metadata:
        whole.state_dict_metadata["rows.weight"].chunks.pop()
        return whole

    edited(folder, lose)
    with pytest.raises(InputError, match="chunks of 'rows.weight' do not make up its shape"):
        open_checkpoint(folder)


def test_chunks_that_overlap_are_refused(tmp_path: Path) -> None:
    """Even if they are as many elements as there should be."""
    folder = save_cut(tmp_path / "m", STATE, {"rows.weight": Cut((2, 1), 1)})

    def twice(whole: facts.Metadata) -> facts.Metadata:
        found = whole.state_dict_metadata["rows.weight"].chunks
        found[1] = replace(found[1], offsets=torch.Size((1, 0)))
        return whole

    edited(folder, twice)
    with pytest.raises(InputError, match="chunks of 'rows.weight' do not make up its shape"):
        open_checkpoint(folder)


@pytest.mark.parametrize("path", ["../x.distcp", "/etc/passwd", "a/../../x"])
def test_nothing_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    """The metadata may name what it likes."""
    folder = save(tmp_path / "m", {"w": nn.Linear(3, 2).weight})

    def lead(whole: facts.Metadata) -> facts.Metadata:
        for info in whole.storage_data.values():
            info.relative_path = path
        return whole

    edited(folder, lead)
    with pytest.raises(InputError, match="names a file outside of the folder"):
        open_checkpoint(folder)


def test_a_foreign_metadata_file_is_refused(tmp_path: Path) -> None:
    """Other tools have a .metadata too."""
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))

    with pytest.raises(InputError, match=r"none of torch\.distributed\.checkpoint"):
        open_checkpoint(tmp_path)


def test_more_files_than_can_be_open_are_read(tmp_path: Path) -> None:
    """A large cluster writes a file for each of its processes."""
    state = {"w.weight": torch.randn(300, 4)}
    folder = save_cut(tmp_path / "m", state, {"w.weight": Cut((300, 1), 300)})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    resource.setrlimit(resource.RLIMIT_NOFILE, (220, before[1]))
    try:
        checkpoint = open_checkpoint(folder)
        found = read(checkpoint, "w.weight")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert build.same_bits(found, state["w.weight"])


def test_the_metadata_alone_is_told(tmp_path: Path) -> None:
    """Whoever names the file means the folder."""
    folder = save(tmp_path / "m", {"w": nn.Linear(3, 2).weight})

    with pytest.raises(InputError, match="name the folder"):
        open_checkpoint(folder / ".metadata")


def test_a_file_of_torch_is_a_plain_state_dict(tmp_path: Path) -> None:
    """The pieces of a DCP folder have no one file: in kind it is a folder again."""
    folder = save(tmp_path / "m", {"model": build.tensors(), "step": 3})

    report = prune_checkpoint(folder, tmp_path / "out.pt", amount=1, dim=0)

    assert report.output and report.output.format == "torch"
    assert torch.load(tmp_path / "out.pt").keys() == build.tensors().keys()
    assert verify_checkpoint(tmp_path / "out.pt", source=folder).is_verified
    prune_checkpoint(folder, tmp_path / "other", amount=1, dim=0, format="in-kind")
    assert verify_checkpoint(tmp_path / "other", source=folder).is_verified
