"""`prune-cli sweep` and the report of sweeps, as they are called."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import build
from tests.conftest import Run

EVAL = "echo '{\"acc\": '$((90 - PRUNE_SEED))'}'"
CLI = [sys.executable, "-m", "prune_cli"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint."""
    return build.safetensors(tmp_path / "model.safetensors", build.tensors())


def test_a_sweep_writes_its_folder_and_tells_each_trial(model: Path, run: Run) -> None:
    """A line for each in a pipe, a table at the end, nothing on stdout."""
    ran = run("sweep", model, "-a", "0.25,50%", "--seeds", "2", "-d", "0", "--eval", EVAL)

    assert (ran.code, ran.out) == (0, "")
    assert "1/5  unpruned  acc 90" in ran.err
    assert "5/5  a0.5-s1  acc 89" in ran.err
    assert "95 % interval" in ran.err
    folder = model.with_name("model.sweep")
    assert {path.name for path in folder.iterdir()} == {
        *("sweep.json", "trials.jsonl", "trials"),
        *("results.csv", "summary.json", "summary.md", "sweep.html"),
    }


def test_quiet_says_nothing(model: Path, run: Run) -> None:
    """Unless there is an error."""
    ran = run("sweep", model, "-a", "0.5", "--seeds", "1", "-d", "0", "--eval", "echo 1", "-q")

    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_dry_run_prints_every_command_on_stdout(model: Path, run: Run) -> None:
    """And makes nothing."""
    ran = run("sweep", model, "-a", "0.5", "--seeds", "3,", "-d", "0", "--eval", "e {seed}", "-n")

    assert ran.out == "unpruned\te 0\na0.5-s3\te 3\n"
    assert not model.with_name("model.sweep").exists()


def test_failed_trials_end_with_7_and_are_run_again(model: Path, run: Run, tmp_path: Path) -> None:
    """The message has the first, and where to look."""
    evaluate = f"test $PRUNE_SEED = 1 && ! test -e {tmp_path}/fixed && exit 3; {EVAL}"
    arguments = ("sweep", model, "-a", "0.5", "--seeds", "3", "-d", "0", "--eval", evaluate)

    ran = run(*arguments)
    (tmp_path / "fixed").touch()
    again = run(*arguments, "--resume")

    assert ran.code == 7
    assert "1 of 4 trials failed, the first was a0.5-s1: eval failed with exit 3" in ran.text
    assert again.code == 0
    assert len((tmp_path / "model.sweep" / "trials.jsonl").read_text().splitlines()) == 5


def test_a_sweep_of_another_command_is_run_again_and_says_so(model: Path, run: Run) -> None:
    """The old lines stay, and are not used."""
    arguments = ("sweep", model, "-a", "0.5", "--seeds", "1", "-d", "0", "--eval")
    run(*arguments, "echo 1")

    ran = run(*arguments, "echo 2", "--resume")

    assert "2 trials in" in ran.text
    assert "are of another input or evaluation: they are not used, and run again" in ran.text
    assert "2/2  a0.5-s0  metric 2" in ran.err


@pytest.mark.parametrize(("bound", "code"), [(88, 0), (90, 7)])
def test_assertions_decide_the_exit_code(model: Path, run: Run, bound: int, code: int) -> None:
    """For a release gate."""
    ran = run(
        *("sweep", model, "-a", "0.5", "--seeds", "3", "-d", "0", "--eval", EVAL),
        *("--assert", f"mean(acc)@0.5 >= {bound}"),
    )

    assert ran.code == code
    assert ("does not hold: mean(acc)@0.5 >= 90 (89 >= 90)" in ran.text) is (code == 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-a", "0.5"], "--eval"),
        (["--eval", "x"], "--amount"),
        (["-a", "0.5", "--eval", "x {y}"], "no placeholder {y}"),
        (["-a", "0.5", "--eval", "x", "--keep", "some"], "--keep"),
        (["-a", "0.5", "--eval", "x", "--format", "onnx"], "--format"),
        (["-a", "0.5", "--eval", "x", "--plot", "x.jpg"], "pdf, svg, png"),
        (["-a", "0.5,x", "--eval", "x"], "'x'"),
        (["-a", "0.5", "--eval", "x", "--seeds", "x"], "--seeds 'x'"),
        (["-a", "0.5", "--eval", "x", "--assert", "mean(a)@0.1 > 1"], "names no point"),
    ],
)
def test_a_line_that_makes_no_sense_ends_with_2(
    model: Path, run: Run, arguments: list[str], message: str
) -> None:
    """And writes nothing."""
    ran = run("sweep", model, "-d", "0", *arguments)

    assert ran.code == 2
    assert message in ran.text
    assert not model.with_name("model.sweep").exists()


def test_a_torch_file_is_swept_in_kind(tmp_path: Path, run: Run) -> None:
    """{model} is what the user's own torch.load reads."""
    model = build.torch_zip(tmp_path / "model.pt", build.tensors())
    evaluate = f"cp {{model}} {tmp_path}/{{trial}}.pt; echo 1"

    ran = run(
        *("sweep", model, "-a", "0.5", "--seeds", "1", "-d", "0", "--eval", evaluate),
        *("--format", "in-kind"),
    )

    assert ran.code == 0
    assert (tmp_path / "a0.5-s0.pt").read_bytes()[:2] == b"PK"


def test_a_figure_and_another_method_beside(model: Path, run: Run, tmp_path: Path) -> None:
    """For a paper, in one command."""
    pytest.importorskip("matplotlib")
    other = tmp_path / "other.csv"
    other.write_text("amount,metric\n0.5,70\n")

    ran = run(
        *("sweep", model, "-a", "0.5", "--seeds", "3", "-d", "0", "--eval", EVAL, "-q"),
        *("--plot", tmp_path / "figure.svg", "--compare", other),
    )

    assert ran.code == 0
    assert ">other<" in (tmp_path / "figure.svg").read_text()
    assert ">other<" in (tmp_path / "model.sweep" / "sweep.html").read_text()


def test_one_module_at_a_time_with_a_recipe(model: Path, run: Run, tmp_path: Path) -> None:
    """The recipe is what --recipe reads."""
    ran = run(
        *("sweep", model, "-a", "0.25,0.5", "--seeds", "1", "-d", "0", "--eval", "echo 1"),
        *("--each", "--lose", "0", "-q"),
    )

    assert ran.code == 0
    recipe = tmp_path / "model.sweep" / "recipe.toml"
    assert recipe.read_text().count("amount = 0.5") == 2
    assert run("random-structured", model, "--recipe", recipe, "-n", "-q").code == 0


def test_allocations_and_criteria_are_points_of_their_own(model: Path, run: Run) -> None:
    """Each trial's report says how its channels were chosen."""
    ran = run(
        *("sweep", model, "-a", "0.5", "--seeds", "2", "-d", "0", "--eval", EVAL),
        *("--allocate", "uniform,erk", "--criterion", "random,l1"),
    )

    trials = model.with_name("model.sweep") / "trials"
    names = {f"a0.5{a}{c}-s{s}" for a in ("", "-erk") for c in ("", "-l1") for s in (0, 1)}
    assert ran.code == 0
    assert {path.name for path in trials.iterdir()} == {"unpruned", *names}
    report = json.loads((trials / "a0.5-erk-l1-s1" / "report.json").read_text())
    assert report["method"] == "l1_structured"
    assert report["options"]["choice"]["allocate"] == "erk"


def test_a_search_for_a_target_draws_allocations(model: Path, run: Run) -> None:
    """Each sample another one; the best is trained on."""
    ran = run(
        *("sweep", model, "--target", "params=50%", "--samples", "4", "-d", "0", "--eval", EVAL),
        *("--allocate", "random", "--between", "0.2,0.8", "--keep-best", "2"),
        *("--finetune", "cp {model} {tuned}"),
    )

    folder = model.with_name("model.sweep")
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert ran.code == 0
    assert [line["trial"] for line in lines[5:]] == [
        "aparams=50%-random-s0-tuned",
        "aparams=50%-random-s1-tuned",
    ]
    sparsity = {line["achieved"]["sparsity"] for line in lines[1:5]}
    assert all(0.4 < part < 0.6 for part in sparsity)
    assert len({line["key"] for line in lines}) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-a", "0.5", "--target", "params=0.5"], "--target stands in place of --amount"),
        (["-a", "0.5", "--allocate", "erk,magic"], "no allocation 'magic'"),
        (["-a", "0.5", "--criterion", "l1,taylor"], "no criterion 'taylor'"),
        (["-a", "0.5", "--between", "0.1,0.9"], "--between is for --allocate random only"),
        (["-a", "0.5", "--criterion", "scores"], "--scores"),
    ],
)
def test_choices_that_do_not_fit_are_refused(
    model: Path, run: Run, arguments: list[str], message: str
) -> None:
    """Before anything is written."""
    ran = run("sweep", model, "-d", "0", "--eval", "x", *arguments)

    assert ran.code == 2
    assert message in ran.text
    assert not model.with_name("model.sweep").exists()


def test_a_recipe_leaves_amounts_open(model: Path, run: Run, tmp_path: Path) -> None:
    """Its other amounts are as they stand there; the unpruned checkpoint has none."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[rules]]\nmodule = "conv"\n[[rules]]\nmodule = "fc"\namount = 1\n')

    ran = run(
        *("sweep", model, "-a", "0.5", "--seeds", "1", "-d", "0", "--eval", "echo 1"),
        *("--recipe", recipe, "-q"),
    )

    trials = model.with_name("model.sweep") / "trials"
    gone = {
        name: [
            len(row["pruned"])
            for row in json.loads((trials / name / "report.json").read_text())["tensors"]
        ]
        for name in ("unpruned", "a0.5-s0")
    }
    assert ran.code == 0
    assert gone == {"unpruned": [0, 0], "a0.5-s0": [3, 1]}


def test_trials_can_be_smaller_models(tmp_path: Path, run: Run) -> None:
    """Each with what is left of it."""
    from tests.shrink.builders import NETS
    from tests.shrink.builders import build as build_net

    model = build.safetensors(tmp_path / "plain.safetensors", build_net("Plain").state_dict())

    ran = run(
        *("sweep", model, "-a", "0.5", "--seeds", "1", "--eval", "echo 1", "-q", "--shrink"),
        *("--model", f"{NETS}:Plain", "--example", "1x3x16x16"),
    )

    records = (tmp_path / "plain.sweep" / "trials.jsonl").read_text().splitlines()
    whole, small = (json.loads(record)["achieved"] for record in records)
    assert ran.code == 0
    assert small["parameters"] < whole["parameters"]
    assert small["flops"] < whole["flops"]


@pytest.mark.parametrize(
    "arguments", [["--model", "x:y"], ["--shrink", "-d", "0"], ["--shrink", "--with-bias"]]
)
def test_options_of_smaller_models_go_together(model: Path, run: Run, arguments: list[str]) -> None:
    """Before anything is read."""
    ran = run("sweep", model, "-a", "0.5", "--eval", "x", *arguments)

    assert ran.code == 2
    assert "--shrink" in ran.text


# --- finished sweeps -------------------------------------------------------------------------


@pytest.fixture
def swept(model: Path, run: Run, tmp_path: Path) -> list[Path]:
    """Two finished sweeps."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, evaluate in zip(folders, (EVAL, EVAL.replace("90", "95")), strict=True):
        run(
            *("sweep", model, "-a", "0.5", "--seeds", "3", "-d", "0", "--eval", evaluate),
            *("-o", folder, "-q"),
        )
    return folders


def test_a_finished_sweep_is_shown_again(swept: list[Path], run: Run) -> None:
    """Its summary is the one that it wrote."""
    shown = run("report", swept[0])
    as_json = run("report", swept[0], "--json")

    assert shown.code == 0
    assert "50%" in shown.out
    assert as_json.out == (swept[0] / "summary.json").read_text()
    assert run("report", swept[0], "--csv").out == (swept[0] / "results.csv").read_text()
    assert run("report", swept[0], "--markdown").out == (swept[0] / "summary.md").read_text()
    assert run("report", swept[0], "--latex").out.startswith(r"\begin{tabular}")


def test_finished_sweeps_are_compared(swept: list[Path], run: Run, tmp_path: Path) -> None:
    """Seed by seed; as a page and a figure, too."""
    shown = run("report", *swept, "--html", tmp_path / "page.html")

    assert "two beats one by 5 at 50%, the same for every seed" in shown.out
    assert "2 sweeps compared" in (tmp_path / "page.html").read_text()
    assert {*json.loads(run("report", *swept, "--json").out)["sweeps"]} == {"one", "two"}


@pytest.mark.parametrize(
    "arguments", [["one", "--csv", "--json"], ["one", "model.safetensors"], ["model.x", "--csv"]]
)
def test_what_does_not_go_together_is_refused(
    swept: list[Path], run: Run, arguments: list[str], tmp_path: Path
) -> None:
    """Before anything is written."""
    paths = [tmp_path / each if not each.startswith("-") else each for each in arguments]

    assert run("report", *paths).code == 2
    assert swept


# --- on a terminal, and interrupted ----------------------------------------------------------


def test_a_terminal_shows_a_table_that_lives(model: Path) -> None:
    """And the line of each trial stays away."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*CLI, "sweep", str(model), "-a", "0.5", "--seeds", "2", "-d", "0"]
        + ["--eval", "sleep 0.3; echo 1"],
        stderr=follower,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 1 << 16):
            shown += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(leader)

    assert process.wait() == 0
    assert b"running" in shown
    assert b"of 3 trials" in shown
    assert b"mean so far" in shown
    assert b"1/3  unpruned" not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_with_130_and_leaves_no_child(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """What is done is kept, and --resume says what it says it does."""
    evaluate = f"test $PRUNE_SEED = 1 || exec echo 1; echo $$ > {tmp_path}/pid; sleep 60"
    argv = [*CLI, "sweep", str(model), "-a", "0.5", "--seeds", "2", "-d", "0", "--eval", evaluate]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)

    process.send_signal(number)
    _, said = process.communicate(timeout=10)

    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert len((tmp_path / "model.sweep" / "trials.jsonl").read_text().splitlines()) == 2
    assert not Path("/proc", (tmp_path / "pid").read_text().strip(), "cwd").exists()
