"""`prune-cli inspect`: what it shows, on which stream, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prune_cli.report.numbers import format_bytes
from tests import build
from tests.conftest import Run


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def llama(layers: int) -> build.Tensors:
    """A tiny decoder with the names of Hugging Face's."""
    content = {"lm_head.weight": torch.ones(16, 4), "model.embed_tokens.weight": torch.ones(16, 4)}
    for layer in range(layers):
        for name, shape in (
            ("input_layernorm", (4,)),
            ("mlp.down_proj", (4, 8)),
            ("mlp.up_proj", (8, 4)),
            ("self_attn.q_proj", (4, 4)),
        ):
            content[f"model.layers.{layer}.{name}.weight"] = torch.ones(shape)
    return content


def words(text: str) -> list[str]:
    """The lines of a table, their columns a space apart."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_small_checkpoint_is_shown_whole(run: Run, tmp_path: Path) -> None:
    """Every parameter has its line, with shape, dtype, size and prunable dims; then the totals."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    ran = run("inspect", path)

    assert (ran.code, ran.err) == (0, "")
    assert words(ran.out) == [
        f"model.safetensors safetensors, {format_bytes(path.stat().st_size)}",
        "",
        "name shape dtype size dims",
        "bn 32 B",
        "num_batches_tracked scalar I64 8 B -",
        "weight 6 F32 24 B -",
        "conv 672 B",
        "bias 6 F32 24 B -",
        "weight 6x3x3x3 F32 648 B 0-3",
        "fc 500 B",
        "bias 10 BF16 20 B -",
        "weight 10x24 BF16 480 B 0-1",
        "",
        "F32 3 tensors 174 elements 696 B",
        "BF16 2 tensors 250 elements 500 B",
        "I64 1 tensor 1 element 8 B",
        "425 parameters in all, buffers counted",
        "2 of 6 tensors can be pruned, along any of their dims; 2 of them are called weight, the default "
        + "of --param",
    ]


def test_500_tensors_fit_a_screen_of_80_columns(run: Run, tmp_path: Path) -> None:
    """Layers that differ by a number are one line each parameter, and no line is too wide."""
    path = build.safetensors(tmp_path / "model.safetensors", llama(130))

    ran = run("inspect", path)

    lines = ran.out.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines[:-1])) <= 80
    assert "down_proj.weight 130 4x8 F32 16.6 kB 0-1" in words(ran.out)
    assert "layers.* 520 43.7 kB" in words(ran.out)


def test_all_shows_every_tensor(run: Run, tmp_path: Path) -> None:
    """--all makes none one with another."""
    path = build.safetensors(tmp_path / "model.safetensors", llama(20))

    ran = run("inspect", path, "--all")

    assert sum("up_proj.weight" in line for line in ran.out.splitlines()) == 20


def test_tensors_that_have_nothing_in_common_are_cut(run: Run, tmp_path: Path) -> None:
    """Where no two can be made one, the first are shown, and a line says how many are not."""
    content = {f"w{number}x": torch.ones(2) for number in range(50)}
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path)

    assert "w39x 2 F32 8 B -" in words(ran.out) and "w40x" not in ran.out
    assert "... and 10 more lines; --all shows them" in ran.out


def test_modules_that_are_not_shown_are_announced(run: Run, tmp_path: Path) -> None:
    """Dots stand for what a module holds, and a line says how to see it."""
    content = {f"m{a}.n{b}.weight": torch.ones(2, 2) for a in range(9) for b in range(9)}
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path)

    assert "m8 ... 9 F32 144 B" in words(ran.out)
    assert "--module picks some, --all shows all" in " ".join(words(ran.out))


def test_dtypes_of_a_closed_module_are_mixed_if_they_are(run: Run, tmp_path: Path) -> None:
    """A module that is not opened names its one dtype, or says that there are several."""
    content = {f"m{a}.w{b}": torch.ones(2, 2).to(torch.float16 if b else torch.float32)
               for a in range(9) for b in range(9)}  # fmt: skip
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path)

    assert "m8 ... 9 mixed 80 B" in words(ran.out)


def test_masks_aliases_notes_and_drops_are_told(run: Run, tmp_path: Path) -> None:
    """What stands out of the ordinary is said below the table."""
    content = build.masked(build.tensors(), {"fc.weight": 3})
    content["head.weight"] = content["conv.weight"]
    content |= {f"q{n}.weight": torch.ones(2, 2) for n in range(4)}
    content |= {f"q{n}.weight_zero_point": torch.ones(2) for n in range(4)}
    path = build.torch_zip(tmp_path / "model.pt", {"model": content, "epoch": 3})

    ran = run("inspect", path)

    text = " ".join(words(ran.out))
    assert "weight masked 10x24" in text
    assert "masked fc.weight: pruned by torch" in text
    assert "shared memory: head.weight is conv.weight" in text
    assert "note: q0.weight is quantised with a zero point" in text
    assert "and 1 more like these" in text
    assert "not tensors, or not in the state dict: epoch" in text


def test_folder_says_how_many_files_it_has(run: Run, tmp_path: Path) -> None:
    """A folder is one checkpoint, and its notes are told."""
    shards = build.split(build.tensors(), build.shard_names(2))
    folder = build.write_folder(tmp_path / "model", shards)
    build.torch_zip(folder / "pytorch_model.bin", build.tensors())

    ran = run("inspect", folder)

    assert ran.code == 0
    assert ran.out.startswith("model  2 files, ")
    assert "note: " in ran.out


def test_zeros_are_bars(run: Run, tmp_path: Path) -> None:
    """Each dim with zero channels has its count and a bar; what has none says so."""
    content = build.tensors()
    content["conv.weight"][:3] = 0
    content["conv.weight"][:, 0] = 0
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path, "--zeros", "-m", "conv", "-m", "bn")

    lines = words(ran.out)
    assert "weight 6x3x3x3 0 3/6 \u2501\u2501\u2501\u2501\u2501" in lines
    assert "1 1/3 \u2501\u2501\u2501" in lines
    assert "bias 6 none" in lines
    assert "num_batches_tracked scalar -" in lines


def test_zeros_of_one_dim_leave_the_others_out(run: Run, tmp_path: Path) -> None:
    """--dim counts along that dim only."""
    content = build.tensors()
    content["conv.weight"][:, 0] = 0
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path, "--zeros", "--dim", 0, "-m", "conv", "-p", "weight")

    assert "conv.weight 6x3x3x3 none" in words(ran.out)


def test_dim_without_zeros_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    """It would have no effect, so it is refused."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    ran = run("inspect", path, "--dim", 0)

    assert ran.code == 2 and "add --zeros" in ran.text


def test_globs_can_be_pasted(run: Run, tmp_path: Path) -> None:
    """Each pattern that is shown, quoted for the shell, picks as many tensors as it says."""
    path = build.safetensors(tmp_path / "model.safetensors", llama(3))

    ran = run("inspect", path, "--globs")

    lines = ran.out.splitlines()
    assert words(lines[0]) == ["--module modules tensors size"]
    assert "      'model.layers.*.mlp.*'" in ran.out
    for line in lines[1:-2]:
        pattern, modules, tensors, *_ = line.split()
        again = run("inspect", path, "--json", "--param", "weight", "-m", pattern.strip("'"))
        rows = json.loads(again.out)["parameters"]
        prunable = [row for row in rows if row["prunable_dims"]]
        assert len(prunable) == int(tensors)
        assert len({row["module"] for row in prunable}) == int(modules)


def test_globs_of_long_names_do_not_wrap(run: Run, tmp_path: Path) -> None:
    """A pattern in two lines could not be pasted."""
    content = {f"{'encoder.' * 12}{n}.weight": torch.ones(2, 2) for n in range(3)}
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path, "--globs", "-m", "*.0", "-m", "*.1")

    assert any(f"{'encoder.' * 12}0" in line for line in ran.out.splitlines())


def test_globs_name_the_parameters_if_they_are_not_weight(run: Run, tmp_path: Path) -> None:
    """An LSTM needs --param too, so it is proposed."""
    content = {f"rnn.weight_{kind}_l0": torch.ones(8, 2) for kind in ("ih", "hh")}
    path = build.safetensors(tmp_path / "model.safetensors", content)

    ran = run("inspect", path, "--globs")

    assert "'*' 'weight_*' 1 2 128 B" in words(ran.out)


def test_no_globs_where_nothing_can_be_pruned(run: Run, tmp_path: Path) -> None:
    """Vectors have no channels, and it says so."""
    path = build.safetensors(tmp_path / "model.safetensors", {"norm.weight": torch.ones(3)})

    ran = run("inspect", path, "--globs")

    assert ran.out.strip() == "nothing in it can be pruned: no tensor has two dims"


def test_json_is_all_of_stdout(run: Run, tmp_path: Path) -> None:
    """--json writes the facts and nothing else."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    ran = run("inspect", path, "--json", "--zeros", "--globs")

    found = json.loads(ran.out)
    assert ran.err == ""
    assert list(found) == [
        "schema", "path", "format", "files", "bytes", "dtypes", "parameters", "globs", "dropped",
        "notes",
    ]  # fmt: skip


@pytest.mark.parametrize("save", build.SAVERS.values(), ids=build.SAVERS)
def test_stdin_is_inspected(save: Callable[[Path, build.Tensors], Path], tmp_path: Path) -> None:
    """`-` is stdin, whatever the format."""
    path = save(tmp_path / "model", build.tensors())

    with path.open("rb") as stream:
        done = _start("inspect", "-", "--json", stdin=stream)

    assert done.returncode == 0
    assert len(json.loads(done.stdout)["parameters"]) == 6


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        pytest.param(["-m", "cnv"], 4, "no module matches 'cnv'; the nearest is 'conv'", id="glob"),
        pytest.param(["-z", "-d", "9"], 4, "has a dim 9", id="dim"),
    ],
)
def test_requests_that_do_not_fit_end_with_4(
    run: Run, tmp_path: Path, options: list[str], code: int, told: str
) -> None:
    """The same errors as for pruning."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    ran = run("inspect", path, *options)

    assert (ran.code, ran.out) == (code, "")
    assert told in ran.text


def test_missing_file_ends_with_3(run: Run, tmp_path: Path) -> None:
    """The error names the file."""
    ran = run("inspect", tmp_path / "none.pt")

    assert ran.code == 3 and "none.pt cannot be read" in ran.text


@pytest.mark.parametrize("options", [[], ["--json"], ["--globs"]], ids=lambda each: "".join(each))
def test_closed_pipe_ends_it_without_a_word(tmp_path: Path, options: list[str]) -> None:
    """Nobody reads on, as after `| head -1`: no traceback, and not the exit code of a bug."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    reading, writing = os.pipe()
    os.close(reading)

    done = _start("inspect", path, *options, stdout=writing)
    os.close(writing)

    assert (done.returncode, done.stderr) == (6, b"")


def test_names_with_markup_are_shown_as_they_are(run: Run, tmp_path: Path) -> None:
    """Square brackets in a name are no markup of ours."""
    content = {"[red]a.[bold]weight": torch.ones(2, 2)}
    path = build.safetensors(tmp_path / "[b]m.safetensors", content)

    ran = run("inspect", path)

    assert "[red]a.[bold]weight" in ran.out and ran.out.startswith("[b]m.safetensors")


def _start(*argv: object, **streams: object) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    command = [sys.executable, "-m", "prune_cli", *map(str, argv)]
    return subprocess.run(command, check=False, **options)  # type: ignore[call-overload]
