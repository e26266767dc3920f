"""The command line, end to end: mostly `main` in this process, signals and pipes in their own."""

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import build
from tests.conftest import Run

COMMAND = (sys.executable, "-m", "prune_cli")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small checkpoint, alone in its folder."""
    (tmp_path / "in").mkdir()
    return build.safetensors(tmp_path / "in" / "model.safetensors", build.tensors())


def left_in(folder: Path) -> set[str]:
    """What is in the folder, hidden files too."""
    return {path.name for path in folder.iterdir()}


# --- the main job ----------------------------------------------------------------------------


@pytest.mark.parametrize("saver", build.SAVERS)
@pytest.mark.parametrize("dim", [0, -1])
def test_the_output_is_what_stock_torch_gives(
    tmp_path: Path, run: Run, saver: str, dim: int
) -> None:
    """Each weight equals stock torch's for the derived seed, and loads into the module."""
    path = build.SAVERS[saver](tmp_path / "model.pt", build.tensors())

    ran = run("random-structured", path, "--amount", "0.25", "--dim", dim, "--seed", 3)

    assert ran.code == 0, ran.err
    pruned = load_file(tmp_path / "model.pruned.safetensors")
    for name, tensor in build.tensors().items():
        chosen = name in ("conv.weight", "fc.weight")
        wanted = build.stock_pruned(tensor, name, 0.25, dim, 3) if chosen else tensor
        assert build.same_bits(pruned[name], wanted), name
    build.Net().load_state_dict(pruned, strict=False)


def test_masks_are_kept_as_torch_has_them(run: Run, model: Path) -> None:
    """With --keep-masks the keys are those of a module after random_structured."""
    ran = run("random-structured", model, "-a", "2", "-d", "0", "--keep-masks", "-m", "fc")

    assert ran.code == 0, ran.err
    kept = load_file(model.with_name("model.pruned.safetensors"))
    weight = build.tensors()["fc.weight"]
    assert build.same_bits(kept["fc.weight_orig"], weight)
    mask = build.stock_mask(weight, "fc.weight", 2, 0).to(torch.bfloat16)
    assert build.same_bits(kept["fc.weight_mask"], mask)
    assert "fc.weight" not in kept


def test_the_summary_says_what_was_understood(run: Run, model: Path) -> None:
    """The amount, the biases that stay, what was skipped and the files are on stderr."""
    ran = run("random-structured", model, "-a", "25%", "-d", "0")

    assert ran.out == ""
    assert "amount 0.25: 25% of each tensor's live channels, dim 0, seed 0" in ran.text
    assert "in 2 modules, pruned channels still output their bias" in ran.text
    assert "skipped bn.weight: 1-D" in ran.text
    assert "wrote" in ran.text and "model.pruned.report.json" in ran.text


def test_quiet_is_quiet(run: Run, model: Path) -> None:
    """With --quiet a run that goes well says nothing."""
    ran = run("random-structured", model, "-a", "1", "-q")

    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize("columns", [60, 80])
def test_many_tensors_stay_readable(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """The table of 500 tensors collapses to a few lines, none longer than the terminal."""
    monkeypatch.setattr("prune_cli.show.console.stderr.width", columns)
    names = [f"layers.{n}.{part}.weight" for n in range(125) for part in ("q", "k", "v", "mlp.up")]
    path = build.safetensors(tmp_path / "x", {name: torch.ones(8, 4) for name in names})

    ran = run("random-structured", path, "-a", "0.5")

    table = ran.err.split("pruned 1,000 of")[0]
    assert ran.code == 0
    assert "layers.*.k.weight" in table
    assert len(table.splitlines()) < 10
    assert max(map(len, table.splitlines())) <= columns


def test_stdout_carries_data_only(run: Run, model: Path) -> None:
    """`-r -` puts the report on stdout, and everything else stays on stderr."""
    ran = run("random-structured", model, "-a", "1", "--report", "-")

    assert ran.code == 0
    assert json.loads(ran.out)["totals"]["channels_pruned"] == 2
    assert left_in(model.parent) == {"model.safetensors", "model.pruned.safetensors"}


def test_a_dry_run_writes_nothing(run: Run, model: Path) -> None:
    """--dry-run shows the plan and leaves the folder as it was."""
    ran = run("random-structured", model, "-a", "1", "--dry-run")

    assert ran.code == 0
    assert "would prune 2 of" in ran.text
    assert left_in(model.parent) == {"model.safetensors"}


def test_a_dry_run_and_a_run_report_the_same(run: Run, model: Path) -> None:
    """But for `output`, the report of a dry run is that of the run."""
    dry = json.loads(run("random-structured", model, "-a", "0.5", "-n", "-r", "-").out)

    wet = json.loads(run("random-structured", model, "-a", "0.5", "-r", "-").out)

    assert dry.pop("output") is None
    assert wet.pop("output")["files"] == ["model.pruned.safetensors"]
    assert dry == wet


# --- where it goes ---------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_files_get_the_mode_of_the_umask(run: Run, model: Path, umask: int) -> None:
    """The output and the report can be read by whoever the umask lets."""
    before = os.umask(umask)
    try:
        assert run("random-structured", model, "-a", "1").code == 0
    finally:
        os.umask(before)

    for name in ("model.pruned.safetensors", "model.pruned.report.json"):
        assert stat.S_IMODE((model.parent / name).stat().st_mode) == 0o666 & ~umask


def test_a_linked_output_stays_a_link(tmp_path: Path, run: Run, model: Path) -> None:
    """What the link leads to is replaced, not the link."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")

    ran = run("random-structured", model, "-a", "1", "-o", tmp_path / "link", "--force")

    assert ran.code == 0, ran.err
    assert (tmp_path / "link").is_symlink()
    assert load_file(tmp_path / "real").keys() == build.tensors().keys()


def test_a_device_can_be_the_output(run: Run, model: Path) -> None:
    """`-o /dev/null` is written to, not replaced, and there is no report beside it."""
    ran = run("random-structured", model, "-a", "1", "-o", "/dev/null")

    assert ran.code == 0, ran.err
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert left_in(model.parent) == {"model.safetensors"}


def refused_outputs(folder: Path) -> dict[str, list[object]]:
    """Options that make the output impossible, by what makes it so."""
    (folder / "old").write_text("old")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "soft").symlink_to(folder / "in" / "model.safetensors")
    os.link(folder / "in" / "model.safetensors", folder / "hard")
    return {
        "exists": ["-o", folder / "old"],
        "exists-resume": ["-o", folder / "old", "--resume"],
        "is-input": ["-o", folder / "in" / "model.safetensors", "-f"],
        "is-soft-link-to-input": ["-o", folder / "soft", "-f"],
        "is-hard-link-to-input": ["-o", folder / "hard", "-f"],
        "no-folder": ["-o", folder / "missing" / "x"],
        "in-a-file": ["-o", folder / "old" / "x"],
        "link-in-a-circle": ["-o", folder / "loop", "-f"],
        "name-too-long": ["-o", folder / ("x" * 300)],
        "read-only-place": ["-o", "/proc/x", "-f"],
        "report-exists": ["-o", folder / "new", "-r", folder / "old"],
        "report-is-input": ["-o", folder / "new", "-r", folder / "hard", "-f"],
        "report-is-output": ["-o", folder / "new", "-r", folder / "folder" / ".." / "new"],
        "full-device": ["-o", "/dev/full"],
    }


@pytest.mark.parametrize(
    "case",
    [
        "exists",
        "exists-resume",
        "is-input",
        "is-soft-link-to-input",
        "is-hard-link-to-input",
        "no-folder",
        "in-a-file",
        "link-in-a-circle",
        "name-too-long",
        "read-only-place",
        "report-exists",
        "report-is-input",
        "report-is-output",
        "full-device",
    ],
)
def test_an_impossible_output_changes_nothing(
    tmp_path: Path, run: Run, model: Path, case: str
) -> None:
    """The exit code is 6, the message names the path, and every file is as it was."""
    options = refused_outputs(tmp_path)[case]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    ran = run("random-structured", model, "-a", "1", *options)

    assert ran.code == 6, ran.err
    assert ran.text.startswith("error: ")
    assert "Traceback" not in ran.err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_force_replaces(run: Run, model: Path) -> None:
    """With --force a second run replaces the output and the report of the first."""
    assert run("random-structured", model, "-a", "1").code == 0
    first = model.with_name("model.pruned.safetensors").read_bytes()

    ran = run("random-structured", model, "-a", "1", "--seed", "5", "--force")

    assert ran.code == 0
    assert model.with_name("model.pruned.safetensors").read_bytes() != first


# --- requests that do not fit ----------------------------------------------------------------

BAD_REQUESTS = {
    "no-amount": ([], 2, "no amount is given"),
    "amount-text": (["-a", "some"], 2, "'some' is neither"),
    "amount-negative": (["-a=-1"], 2, "neither"),
    "amount-above-one": (["-a", "1.5"], 2, "neither"),
    "amount-percent": (["-a", "150%"], 2, "neither"),
    "amount-too-large": (["-a", "11"], 4, "too large"),
    "dim": (["-a", "1", "-d", "7"], 4, "there is no dim 7"),
    "dim-of-one": (["-a", "1", "-d", "2"], 4, "fc.weight has shape [10, 24]"),
    "module": (["-a", "1", "-m", "conf"], 4, "no module matches 'conf'; the nearest is 'conv'"),
    "exclude": (["-a", "1", "-x", "heads.*"], 4, "no module matches 'heads.*'"),
    "param": (["-a", "1", "-p", "kernel"], 4, "is called 'kernel'"),
    "vector-by-name": (["-a", "1", "-m", "bn"], 4, "bn.weight is 1-D"),
    "only-vectors": (
        ["-a", "1", "-m", "b?"],
        4,
        "nothing that matches can be pruned: bn.weight (1-D",
    ),
    "nothing-left": (["-a", "1", "-x", "*"], 4, "excluded again"),
    "bias-of-columns": (["-a", "1", "--with-bias"], 4, "--with-bias needs it"),
    "device-missing": (["-a", "1", "-D", "cuda:99"], 4, "there is no device 'cuda:99'"),
    "device-unknown": (["-a", "1", "-D", "toaster"], 4, "there is cpu"),
    "device-meta": (["-a", "1", "-D", "meta"], 4, "there is no device 'meta'"),
    "shard-size": (["-a", "1", "--max-shard-size", "big"], 2, "not a size"),
    "both-to-stdout": (["-a", "1", "-o", "-", "-r", "-"], 2, "cannot both go to stdout"),
    "folder-to-stdout": (["-a", "1", "-o", "-", "--max-shard-size", "1GB"], 2, "is a folder"),
    "recipe-missing": (["-a", "1", "--recipe", "/no/recipe"], 3, "cannot be read"),
    "unknown-option": (
        ["--amuont", "1"],
        2,
        "there is no option --amuont tip: did you mean --amount?",
    ),
    "zero-workers": (["-a", "1", "--workers", "0"], 2, "--workers: "),
}


@pytest.mark.parametrize(("options", "code", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_request_that_does_not_fit_writes_nothing(
    run: Run, model: Path, options: list[str], code: int, message: str
) -> None:
    """The exit code says whose fault it is, the message what to change."""
    ran = run("random-structured", model, *options)

    assert (ran.code, "Traceback" in ran.err) == (code, False), ran.err
    assert message in ran.text
    assert left_in(model.parent) == {"model.safetensors"}


def test_problems_are_gathered(run: Run, model: Path) -> None:
    """A vector that was named and an impossible dim are told in one run."""
    ran = run("random-structured", model, "-a", "1", "-m", "bn", "-m", "fc", "-d", "3")

    assert ran.code == 4
    assert "bn.weight is 1-D" in ran.text
    assert "there is no dim 3" in ran.text


# --- pipes, signals, limits: in a process of their own ---------------------------------------


def big_model(folder: Path, megabytes: int) -> Path:
    """A checkpoint that takes a while; its zeros take no room on the disk."""
    columns = 1024
    rows = megabytes * (1 << 20) // (4 * columns)
    nbytes = rows * columns * 4
    header = {"fc.weight": build.entry(0, nbytes, rows, columns, dtype="F32")}
    text = json.dumps(header).encode()
    path = folder / "big.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + nbytes)
        for row in range(0, rows, 1):  # one live element in each channel
            file.seek(8 + len(text) + row * columns * 4)
            file.write(b"\0\0\x80\x3f")
    return path


def test_a_pipe_in_and_a_pipe_out(model: Path) -> None:
    """Through stdin and stdout, which cannot seek, come the bytes that a file gets."""
    options = ("-a", "0.5", "-d", "0", "--workers", "3")
    subprocess.run(
        [*COMMAND, "random-structured", model, *options], check=True, capture_output=True
    )

    ran = subprocess.run(
        [*COMMAND, "random-structured", "-", *options, "-o", "-"],
        input=model.read_bytes(),
        capture_output=True,
        check=True,
    )

    assert ran.stdout == model.with_name("model.pruned.safetensors").read_bytes()


def test_a_closed_pipe_is_an_output_error(tmp_path: Path) -> None:
    """When the reader of stdout goes away the exit code is 6, without a traceback."""
    command = [*COMMAND, "random-structured", big_model(tmp_path, 8), "-a", "1", "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()

    assert process.returncode == 6
    assert said.startswith("error: stdout was closed before everything was written")


def test_messages_that_nobody_reads_do_not_stop_the_work(model: Path) -> None:
    """With stderr closed by its reader the output is still complete, and the exit code 0."""
    read, write = os.pipe()
    os.close(read)

    ran = subprocess.run(
        [*COMMAND, "random-structured", model, "-a", "1"], stderr=write, check=False
    )

    os.close(write)
    assert ran.returncode == 0
    assert load_file(model.with_name("model.pruned.safetensors"))


@pytest.fixture(params=["1", "2"], ids=["one-worker", "two-workers"])
def midway(request: pytest.FixtureRequest, tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A run in place of an old file, halted while it writes; two workers begin before the plan."""
    path = big_model(tmp_path, 64)
    (tmp_path / "out").write_text("old")
    options = ["-a", "1", "--workers", request.param, "-o", tmp_path / "out", "--force"]
    command = [*COMMAND, "random-structured", path, *options]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    while not any(map(is_nameless_and_filled, Path(f"/proc/{process.pid}/fd").iterdir())):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    return process


def is_nameless_and_filled(descriptor: Path) -> bool:
    """Whether an open file has no name and is not empty."""
    with contextlib.suppress(FileNotFoundError):
        facts = descriptor.stat()
        return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0 and facts.st_size > 0
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_midway_leaves_nothing(
    midway: "subprocess.Popen[bytes]", tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM while bytes flow end with 130, and the old file stays."""
    midway.send_signal(number)
    midway.send_signal(signal.SIGCONT)

    assert midway.wait(30) == 130
    assert left_in(tmp_path) == {"big.safetensors", "out"}
    assert (tmp_path / "out").read_text() == "old"


def test_a_kill_midway_leaves_nothing(midway: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    """Not even SIGKILL leaves half a file, under whatever name."""
    midway.kill()

    assert midway.wait(30) == -signal.SIGKILL
    assert left_in(tmp_path) == {"big.safetensors", "out"}
    assert (tmp_path / "out").read_text() == "old"


@pytest.mark.parametrize(
    "argv", ["inspect model.safetensors", "--help", "random-structured --help"]
)
def test_no_room_on_stdout_is_an_output_error(model: Path, argv: str) -> None:
    """What was asked for on stdout is lost, and the exit code says so."""
    command = [sys.executable, "-m", "prune_cli", *argv.split()]
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            command, check=False, cwd=model.parent, stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert ran.returncode == 6
    assert ran.stderr == "error: stdout cannot be written: No space left on device\n"


def test_no_room_for_messages_does_not_stop_the_work(model: Path) -> None:
    """They are no data."""
    command = [sys.executable, "-m", "prune_cli", "random-structured", model.name, "-a", "1"]
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(command, check=False, cwd=model.parent, stderr=full)

    assert ran.returncode == 0
    assert "model.pruned.safetensors" in left_in(model.parent)


def test_names_are_whole_where_no_terminal_is(tmp_path: Path) -> None:
    """A log that is searched for a name has it in one piece; a width that is asked for holds."""
    name = "encoder." + "a_long_name." * 12 + "weight"
    path = build.safetensors(tmp_path / "long.safetensors", {name: torch.ones(4, 4)})

    command = [sys.executable, "-m", "prune_cli", "random-structured", path, "-a", "1", "-n"]
    free = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    plain, narrow = (
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr
        for env in (free, free | {"COLUMNS": "60"})
    )

    assert name in plain
    assert name not in narrow


def test_what_is_read_is_never_written(run: Run, model: Path) -> None:
    """A recipe and a report are inputs as well, whatever --force says."""
    folder = model.parent
    recipe = folder / "recipe.toml"
    recipe.write_text("[[rules]]\namount = 1\n")
    run("random-structured", model, "--recipe", recipe, "-q")
    report = folder / "model.pruned.report.json"
    (folder / "in").mkdir()
    inside = folder / "in" / "report.json"
    inside.write_bytes(report.read_bytes())
    before = recipe.read_bytes(), report.read_bytes(), left_in(folder)

    refused = [
        run("random-structured", model, "--recipe", recipe, "-o", recipe, "-f"),
        run("random-structured", model, "--recipe", recipe, "-r", recipe, "-f"),
        run("random-structured", model, "--recipe", recipe, "-r", recipe, "-f", "-n"),
        run("apply", report, model, "-f"),
        run("apply", report, model, "-o", report, "-f"),
        run("apply", inside, model, "-o", folder / "in", "--max-shard-size", "1MB", "-f"),
    ]

    assert [ran.code for ran in refused] == [6] * 6
    assert all("an input; choose another" in ran.text for ran in refused)
    assert (recipe.read_bytes(), report.read_bytes(), left_in(folder)) == before


def test_a_dry_run_knows_the_devices_too(run: Run, model: Path) -> None:
    """What could not run is not shown as if it could."""
    assert run("random-structured", model, "-a", "1", "-n", "-D", "toaster").code == 4


def test_tied_weights_are_told(run: Run, tmp_path: Path) -> None:
    """They are stored once, so load_state_dict(strict=True) misses the other name."""
    weight = torch.randn(5, 4)
    path = build.torch_zip(tmp_path / "tied.pt", {"a.weight": weight, "b.weight": weight})

    text = run("random-structured", path, "-a", "1").text

    assert "1 name(s) share memory with a tensor" in text
    assert "safetensors.torch.load_model restores them" in text


def test_the_summary_of_a_recipe_says_what_fills_it(run: Run, model: Path) -> None:
    """--amount is only for the rules without one."""
    recipe = model.with_name("recipe.toml")
    recipe.write_text('[[rules]]\nmodule = "conv"\namount = 1\n')

    text = run("random-structured", model, "--recipe", recipe, "-a", "0.5", "-n").text

    assert "amounts of the recipe, or 0.5 where it gives none" in text


def test_a_file_size_limit_leaves_nothing(model: Path) -> None:
    """Where the file cannot grow to its size, the exit code is 6 and no temporary file is left."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    ran = subprocess.run(
        [*COMMAND, "random-structured", model, "-a", "1"],
        capture_output=True,
        preexec_fn=limit,
        check=False,
    )

    assert ran.returncode == 6
    assert b"File too large" in ran.stderr
    assert left_in(model.parent) == {"model.safetensors"}


def test_no_checkpoint_goes_to_a_terminal(model: Path) -> None:
    """`-o -` on a terminal is refused before a byte of the file reaches it."""
    ours, terminal = os.openpty()

    ran = subprocess.run(
        [*COMMAND, "random-structured", str(model), "-a", "1", "-d", "0", "-o", "-"],
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    os.close(terminal)
    os.close(ours)
    assert ran.returncode == 6
    assert "stdout is a terminal" in ran.stderr


@pytest.mark.parametrize("style", ["json", "csv"])
def test_data_acts_on_no_terminal(tmp_path: Path, style: str) -> None:
    """A name out of a file is shown with escapes there, and is what it is in a pipe."""
    name = "a\u009b31m.weight"
    model = build.safetensors(tmp_path / "m", {name: torch.ones(2, 2)})
    command = [*COMMAND, "inspect", str(model), "--format", style]
    ours, terminal = os.openpty()

    subprocess.run(command, stdout=terminal, check=True)
    piped = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()

    shown = os.read(ours, 10_000).decode()
    os.close(terminal)
    os.close(ours)
    assert name in piped
    assert name not in shown and r"a\x9b31m.weight" in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("random-structured {} --module c", {"conv"}),
        ("random-structured -a 0.25 {} -d 0 -m ", {"conv", "fc"}),
        ("inspect {} --exclude f", {"fc"}),
        ("random-structured nothing.pt --module c", set()),
        ("random-structured --module c", set()),
    ],
    ids=["module", "after other options", "exclude", "no such file", "no file yet"],
)
def test_the_shell_completes_module_names(
    model: Path, monkeypatch: pytest.MonkeyPatch, run: Run, line: str, expected: set[str]
) -> None:
    """After --module and --exclude come the modules of the checkpoint on the line."""
    words = f"prune-cli {line.format(model)}"
    monkeypatch.setenv("_PRUNE_CLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))

    ran = run()

    assert ran.code == 0
    assert expected <= set(ran.out.split())
    assert bool(ran.out.split()) == bool(expected)
