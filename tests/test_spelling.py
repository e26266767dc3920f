"""What a Python caller reads, catches and sees: keywords, errors, reports, short forms."""

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import prune_cli
from prune_cli.spelling import as_keywords
from prune_cli.sweep.twin import sweep
from tests import build

FUNCTIONS = [
    name for name in prune_cli.__all__ if inspect.isfunction(getattr(prune_cli, name, None))
]

ONLY_OF_THE_COMMAND_LINE = {
    *("--assert", "--each", "--keep-best", "--lose", "--metric-file", "--metric-regex"),
    *("--part", "--finish", "--scheduler", "--scheduler-file"),
}
"""What no function has, so that no Python caller reads of it."""


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The path of a small checkpoint, as a string."""
    return str(build.safetensors(tmp_path / "model.safetensors", build.tensors()))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("x exists; --force replaces it", "x exists; force=True replaces it"),
        ("say how much: --amount 0.25", "say how much: amount=0.25"),
        ("try --dim 0", "try dim=0"),
        ("choose with --param", "choose with `params`"),
        ("name it: --report", "name it: `report`"),
        ("give its arguments with --model-arg", "give its arguments with `model_arguments`"),
        ("exclude it (-x)", "exclude it (`exclude`)"),
        ("try -p 'weight_*'", "try params='weight_*'"),
        ("--resume continues it, --force starts over", None),
        ("a--force.pt is --unknown", "a--force.pt is --unknown"),
    ],
)
def test_options_are_spelt_as_keywords(message: str, said: str | None) -> None:
    """Of known options; what only looks like one stays as it is."""
    said = said or "resume=True continues it, force=True starts over"

    assert as_keywords(message) == said


def test_every_option_that_a_message_names_has_a_keyword() -> None:
    """Outside of the command line, no message names an option that a Python caller has not."""
    package = Path(prune_cli.__file__).parent
    rooms = [path for path in package.rglob("*.py") if not {"cli", "show"} & {*path.parts}]
    named = {
        option
        for path in rooms
        for text in _strings(path)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
    }

    unknown = {option for option in named if as_keywords(option) == option}
    assert unknown <= ONLY_OF_THE_COMMAND_LINE
    functions = [sweep, *(getattr(prune_cli, name) for name in FUNCTIONS)]
    parameters = {each for function in functions for each in inspect.signature(function).parameters}
    keywords = {as_keywords(option).strip("`").partition("=")[0] for option in named - unknown}
    assert keywords <= parameters


def _strings(path: Path) -> Iterator[str]:
    """Yield the strings of a file that are no docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.body if isinstance(getattr(node, "body", None), list) else []
        for part in parts:
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                part.value.value = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_an_output_that_exists_is_answered_with_the_keyword(model: str) -> None:
    """The command line says --force."""
    prune_cli.prune_checkpoint(model, amount=0.5, dim=0)

    with pytest.raises(prune_cli.OutputError, match=r"exists; force=True replaces it"):
        prune_cli.prune_checkpoint(model, amount=0.5, dim=0)


def test_a_sweep_whose_folder_is_taken_is_answered_with_the_keyword(
    model: str, tmp_path: Path
) -> None:
    """The room that can be called speaks as the functions do."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()

    with pytest.raises(prune_cli.OutputError, match="choose another `output`"):
        prune_cli.sweep(model, [0.5], 1, lambda _: 0.0, output=tmp_path / "out")


def test_a_missing_amount_is_answered_with_the_keyword(model: str) -> None:
    """So it is, where the message comes from the plan."""
    checkpoint = prune_cli.open_checkpoint(model)

    for call in (
        lambda: prune_cli.prune_checkpoint(model),
        lambda: prune_cli.make_plan(checkpoint, prune_cli.Options(None)),
    ):
        with pytest.raises(prune_cli.UsageError, match=r"amount=0\.25"):
            call()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mistyped_keyword_is_a_type_error(name: str) -> None:
    """No public function swallows keywords."""
    kinds = {each.kind for each in inspect.signature(getattr(prune_cli, name)).parameters.values()}

    assert inspect.Parameter.VAR_KEYWORD not in kinds
    with pytest.raises(TypeError, match="dryrun"):
        getattr(prune_cli, name)(dryrun=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_can_be_sent_to_another_process(name: str) -> None:
    """Pickle finds it by its name."""
    function = getattr(prune_cli, name)

    assert pickle.loads(pickle.dumps(function)) is function


def test_a_string_is_one_glob_wherever_globs_are_meant(model: str) -> None:
    """It is not the globs of its letters."""
    as_text = prune_cli.prune_checkpoint(
        model, amount=1, dim=0, modules="*", exclude="conv", params="weight", dry_run=True
    )
    as_rule = prune_cli.prune_checkpoint(
        model, rules=[prune_cli.Rule("fc", amount=1, dim=0)], dry_run=True
    )
    as_options = prune_cli.Options(1, 0, modules="fc", exclude=["conv"], params="weight")

    assert [item.name for item in as_text.tensors] == ["fc.weight"]
    assert [item.name for item in as_rule.tensors] == ["fc.weight"]
    assert (as_options.modules, as_options.exclude) == (("fc",), ("conv",))
    assert prune_cli.Loading("ema").state_dict_keys == ("ema",)


def test_a_rule_has_defaults_but_for_the_amount() -> None:
    """Without one it would prune nothing, or all."""
    assert prune_cli.Rule(amount=1) == prune_cli.Rule(("*",), ("weight",), 1, -1)
    with pytest.raises(prune_cli.AmountTypeError, match=r"Rule\(amount=0\.25\)"):
        prune_cli.Rule("fc")


# --- Reports ------------------------------------------------------------------------------------


def test_a_report_is_saved_and_read_by_strings(model: str, tmp_path: Path) -> None:
    """It is the report that the run wrote, byte for byte; what is there is not replaced unasked."""
    report = prune_cli.prune_checkpoint(model, str(tmp_path / "out"), amount=0.5, dim=0)
    path = str(tmp_path / "copy.json")

    report.save(path)

    assert Path(path).read_bytes() == (tmp_path / "out.report.json").read_bytes()
    assert Path(path).read_text() == report.to_json()
    assert prune_cli.read_report(path) == report
    assert [*prune_cli.read_reports(path).values()] == [report]
    with pytest.raises(prune_cli.OutputError, match="exists"):
        report.save(path)
    report.save(path, force=True)


def test_facts_have_short_forms(model: str) -> None:
    """Thousands of channels are counted, and not listed."""
    report = prune_cli.prune_checkpoint(model, amount=0.5, dim=0, modules="fc", dry_run=True)

    assert repr(report) == (
        "<Report of model.safetensors: random_structured, 5 of 10 channels of 1 tensor pruned>"
    )
    assert repr(report.tensors) == "(<PlanItem fc.weight: 5 of 10 channels of dim 0>,)"
    assert repr(report.plan) == "<Plan random_structured: items=1, skipped=0>"
    opened = repr(prune_cli.open_checkpoint(model))
    assert opened == f"<Checkpoint {model}: safetensors, tensors=6>"


def test_a_notebook_shows_a_table(tmp_path: Path) -> None:
    """Names out of a file are text in it, and no markup; long tables are cut."""
    names = ["<b>.weight", *(f"l{number}.weight" for number in range(40))]
    content = dict.fromkeys(names, build.tensors()["fc.weight"])
    path = build.safetensors(tmp_path / "x.safetensors", {k: v.clone() for k, v in content.items()})
    report = prune_cli.prune_checkpoint(path, amount=0.25, dim=0, dry_run=True)

    html = report._repr_html_()

    assert "<b>" not in html
    assert "&lt;b&gt;.weight" in html
    assert html.count("<tr>") == 1 + 30
    assert "and 11 more tensors" in html


def test_shrinking_takes_one_glob_and_one_example_as_a_string(tmp_path: Path) -> None:
    """Each is itself, and not its letters."""
    code = tmp_path / "net.py"
    code.write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    path = build.safetensors(tmp_path / "net.safetensors", net.state_dict())

    report = prune_cli.shrink_checkpoint(
        path, model=f"{code}:build", examples="1x4", amount=0.5, modules="0", dry_run=True
    )

    assert report.options.modules == ("0",)
    assert report.shrink is not None
