"""What is read out of a store is what is read of the same files on this machine, and no more."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save_file

from prune_cli import InputError, UsageError, open_checkpoint, prune_checkpoint, verify_checkpoint
from prune_cli.checkpoint import STAGING
from prune_cli.stores import StorePath, locate
from tests.conftest import Run

SHARDS = 3


class Counting(MemoryFileSystem):
    """A store in memory that counts what it is asked for; two of its instances are one."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fetched: ClassVar[list[tuple[str, int, int]]] = []
    asked: ClassVar[list[str]] = []
    failures: ClassVar[list[Exception | int]] = []
    """What the next ranges come to: an exception, or so many bytes less."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counting://").strip("/")

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Note it."""
        self.asked.append(f"info {path}")
        return super().info(path, **kwargs)

    def find(self, path: str, **kwargs: Any) -> Any:
        """Note it."""
        self.asked.append(f"find {path}")
        return super().find(path, **kwargs)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Note it, and fail as the test wants."""
        content = bytes(super().cat_file(path, start, end, **kwargs))
        self.fetched.append((path, start or 0, len(content)))
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return content[: len(content) - failure]
        return content


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """An empty store at counting://, without waits between attempts."""
    monkeypatch.setattr("prune_cli.stores.store.FIRST_WAIT", 0)
    monkeypatch.setattr("prune_cli.stores.ranges.FIRST_WAIT", 0)
    fsspec.register_implementation("counting", Counting, clobber=True)
    for held in (Counting.store, Counting.fetched, Counting.asked, Counting.failures):
        held.clear()
    yield fsspec.filesystem("counting", use_listings_cache=False)
    Counting.store.clear()


def save(path: Path, **tensors: torch.Tensor) -> Path:
    """Save `tensors`, whose names have a dot for each underscore."""
    save_file({name.replace("_", "."): each for name, each in tensors.items()}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, store: Counting) -> Path:
    """A model of several shards with other files, on this machine and in the store."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    torch.manual_seed(0)
    for number in range(1, SHARDS + 1):
        name = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        weights = {f"l{number}{part}_weight": torch.randn(40, 60) for part in "ab"}
        save(folder / name, **weights)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "merges.txt").write_text("a b")
    store.put(f"{folder}/", "/bucket/model/", recursive=True)
    return folder


def test_a_folder_costs_one_listing_and_one_range_a_shard(folder: Path, store: Counting) -> None:
    """Whatever is asked of the paths in it."""
    checkpoint = open_checkpoint("counting://bucket/model")

    assert checkpoint.tensors == open_checkpoint(folder).tensors
    assert checkpoint.others == ("config.json", "sub/merges.txt")
    assert [one for one in store.asked if one.startswith("find")] == ["find /bucket/model"]
    assert len(store.fetched) == SHARDS


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("options", [{}, {"bake": False}, {"max_shard_size": 12_000}])
def test_the_bytes_are_those_of_a_run_on_local_files(
    folder: Path, tmp_path: Path, dim: int, options: dict[str, Any]
) -> None:
    """The other files and the report too, and verify finds nothing against the store."""
    wanted = prune_checkpoint(folder, tmp_path / "a" / "out", amount=0.3, dim=dim, **options)
    made = prune_checkpoint(
        "counting://bucket/model", tmp_path / "b" / "out", amount=0.3, dim=dim, **options
    )

    assert made == wanted
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    verified = verify_checkpoint(tmp_path / "b" / "out", source="counting://bucket/model")
    assert verified.is_verified


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_a_file_of_torch_is_read_by_ranges(
    tmp_path: Path, store: Counting, name: str, legacy: bool
) -> None:
    """What else it holds is not fetched for safetensors; transposed weights come out right."""
    weights = {"a.weight": torch.randn(64, 32), "b.weight": torch.randn(32, 48).t()}
    content = {"state_dict": weights, "optimizer": torch.zeros(1_000_000)}
    file = tmp_path / "m.pt"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    store.put(str(file), "/bucket/m.pt")

    made = prune_checkpoint(
        "counting://bucket/m.pt", tmp_path / name, amount=0.25, dim=0, format=in_kind(name)
    )
    made_of = sum(nbytes for _, _, nbytes in store.fetched)
    wanted = prune_checkpoint(file, tmp_path / f"w{name}", amount=0.25, dim=0, format=in_kind(name))

    assert (tmp_path / name).read_bytes() == (tmp_path / f"w{name}").read_bytes()
    assert made.tensors == wanted.tensors
    assert name == "out.pt" or made_of < 2_000_000


def in_kind(name: str) -> str | None:
    """Return the format of a file called so."""
    return "in-kind" if name.endswith(".pt") else None


# --- what is not fetched ---------------------------------------------------------------------


def test_a_dry_run_of_dim_0_reads_headers_and_says_so(
    tmp_path: Path, store: Counting, run: Run
) -> None:
    """Less than a hundredth of the file, and the plan is that of the run."""
    file = save(tmp_path / "m.safetensors", a_weight=torch.randn(256, 8_192))
    store.put(str(file), "/bucket/m.safetensors")

    ran = run(
        "random-structured", "counting://bucket/m.safetensors", "-a", 0.5, "-d", 0, "-n", "--json"
    )

    assert ran.code == 0
    assert "were not read: a channel along dim 0 that is zero already" in ran.text
    assert sum(nbytes for _, _, nbytes in store.fetched) < 0.01 * file.stat().st_size + 100_000


def test_long_rows_that_become_zero_are_not_fetched(tmp_path: Path, store: Counting) -> None:
    """But for a few bytes of each, which tell that they were live."""
    file = save(tmp_path / "m.safetensors", a_weight=torch.randn(16, 50_000))
    store.put(str(file), "/bucket/m.safetensors")

    prune_checkpoint(
        "counting://bucket/m.safetensors", tmp_path / "o.safetensors", amount=0.5, dim=0
    )

    assert sum(nbytes for _, _, nbytes in store.fetched) < 0.6 * file.stat().st_size + 100_000


@pytest.mark.parametrize("dead", [[0], [3], [37], [10, 11, 39]])
@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_rows_that_are_zero_already_are_found_in_time(
    tmp_path: Path, store: Counting, dead: Sequence[int], amount: float
) -> None:
    """Whether they are drawn or not, sampled or not: the output is that of local files."""
    weight = torch.randn(40, 10_000)
    weight[dead] = 0
    weight[5, :9_999] = 0
    file = save(tmp_path / "m.safetensors", a_weight=weight, b_weight=torch.randn(8, 8))
    store.put(str(file), "/bucket/m.safetensors")

    made = prune_checkpoint(
        "counting://bucket/m.safetensors", tmp_path / "o.safetensors", amount=amount, dim=0
    )
    wanted = prune_checkpoint(file, tmp_path / "w.safetensors", amount=amount, dim=0)

    assert made.tensors == wanted.tensors
    assert made.tensors[0].already_pruned == tuple(dead)
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [1, 20_000, OSError("the connection was reset")])
def test_what_fails_at_first_is_asked_for_again(
    folder: Path, tmp_path: Path, store: Counting, failure: Exception | int
) -> None:
    """A range that is short, or an error that may go away, costs nothing but time."""
    store.failures[:] = [failure] * 3

    prune_checkpoint("counting://bucket/model", tmp_path / "b" / "model", amount=0.3, dim=0)
    prune_checkpoint(folder, tmp_path / "a" / "model", amount=0.3, dim=0)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (9, r"gave [\d,]+ bytes instead of"),
        (PermissionError("Access Denied"), "Access Denied"),
        (TimeoutError("no answer"), "no answer"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_goes_on_failing_is_an_error_and_leaves_nothing(
    tmp_path: Path, store: Counting, run: Run, failure: Exception | int, message: str
) -> None:
    """In one line that names the object."""
    store.failures[:] = [0] * SHARDS + [failure] * 100

    ran = run(
        "random-structured", "counting://bucket/model", "-a", 0.3, "-d", 0, "-o", tmp_path / "o"
    )

    assert ran.code == 3
    assert ran.err.count("error:") == 1
    assert re.search(
        rf"counting://bucket/model/model-0000\d-of-00003\.safetensors cannot be read: .*{message}",
        ran.text,
    )
    assert not [path for path in (tmp_path / "o").rglob("*") if STAGING not in path.parts]


def test_an_object_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a mixture of both."""
    file = save(tmp_path / "m.safetensors", a_weight=torch.randn(40, 60))
    store.put(str(file), "/bucket/m.safetensors")
    checkpoint = open_checkpoint("counting://bucket/m.safetensors")
    assert checkpoint.tensors
    plain = Counting.cat_file

    def change(self: Counting, path: str, *args: Any, **kwargs: Any) -> bytes:
        content = plain(self, path, *args, **kwargs)
        monkeypatch.setattr(Counting, "cat_file", plain)
        self.put(str(file), "/bucket/m.safetensors")
        return content

    monkeypatch.setattr(Counting, "cat_file", change)

    with pytest.raises(InputError, match="changed while it was read; start again"):
        prune_checkpoint(
            "counting://bucket/m.safetensors", tmp_path / "o.safetensors", amount=0.3, dim=0
        )
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("counting://bucket/none.pt", "counting://bucket/none.pt cannot be read: there is no such"),
        ("counting://bucket/empty.pt", "counting://bucket/empty.pt is empty"),
        ("counting://bucket/model/config.json", "JSON, but not the index"),
        ("counting://bucket/model/sub", "holds no checkpoint"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_no_checkpoint_is_told_as_on_this_machine(
    store: Counting, run: Run, url: str, message: str
) -> None:
    """Exit code 3, in the words of local files."""
    store.pipe("/bucket/empty.pt", b"")

    ran = run("inspect", url)

    assert ran.code == 3
    assert message in ran.text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://a/b", "nosuch:// is no store that fsspec knows; known are s3, "),
        ("adl://a/b", r"adl:// needs a package more: pip install 'prune-cli[azure]'"),
    ],
)
def test_a_store_that_cannot_be_reached_is_a_usage_error(url: str, message: str) -> None:
    """It names what to install."""
    if url.startswith("adl") and importlib.util.find_spec("adlfs"):
        pytest.skip("adlfs is installed")

    with pytest.raises(UsageError) as raised:
        open_checkpoint(url)

    assert message in str(raised.value)


# --- paths -----------------------------------------------------------------------------------


def test_urls_are_told_from_paths() -> None:
    """A file:// URL is a path; a drive, a colon and a slash alone are no scheme."""
    assert locate("s3://b/x y/m.pt") == StorePath("s3", "b/x y/m.pt")
    assert locate("file:///a/m.pt") == Path("/a/m.pt")
    assert locate("a:/b.pt") == Path("a:/b.pt")
    assert locate("m.pt") == Path("m.pt")
    assert str(locate("https://host/m.pt?X-Signature=secret")) == "https://host/m.pt"


def test_a_store_path_has_parts_like_a_path() -> None:
    """Name, stem, suffix, parent and siblings."""
    path = locate("s3://bucket/models/llama.safetensors")

    assert (path.name, path.stem, path.suffix) == ("llama.safetensors", "llama", ".safetensors")
    assert str(path.parent) == "s3://bucket/models"
    assert str(path.with_name("x.json")) == "s3://bucket/models/x.json"
    assert [str(one) for one in path.parents] == ["s3://bucket/models", "s3://bucket"]
