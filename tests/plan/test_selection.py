"""Patterns, amounts, sizes and recipes: names and numbers, without a checkpoint."""

from pathlib import Path

import pytest

from prune_cli.amounts import Amount, check_amount, parse_amount
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.cli.sizes import parse_size
from prune_cli.errors import InputError, SelectionError, UsageError
from prune_cli.plan.recipe import read_recipe
from prune_cli.plan.selection import Rule, Selection, select

NAMES = [
    "weight",
    "layer1.0.conv1.weight",
    "layer1.0.conv1.bias",
    "layer1.0.bn1.weight",
    "layer1.10.conv1.weight",
    "Layer1.fc.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "a[0].weight",
]
PARAMETERS = [Parameter(name, TensorInfo(name, "F32", (4, 4))) for name in NAMES]


def picked(*rules: Rule, exclude: tuple[str, ...] = ()) -> list[str]:
    """The names that a selection picks."""
    return [found.parameter.name for found in select(PARAMETERS, Selection(rules, exclude))]


def rule(*modules: str, params: tuple[str, ...] = ("weight",), amount: Amount = 1) -> Rule:
    """A rule of dim 0."""
    return Rule(modules, params, amount, 0)


PATTERNS = {
    "all": (("*",), [name for name in NAMES if name.endswith("weight")]),
    "root": (("",), ["weight"]),
    "star-crosses-dots": (("layer1*conv1",), ["layer1.0.conv1.weight", "layer1.10.conv1.weight"]),
    "question-mark": (("layer1.?.conv1",), ["layer1.0.conv1.weight"]),
    "class": (("layer1.[0-9].*1",), ["layer1.0.conv1.weight", "layer1.0.bn1.weight"]),
    "case-sensitive": (("Layer1.*",), ["Layer1.fc.weight"]),
    "two": (("rnn", "Layer1.fc"), ["Layer1.fc.weight"]),
    "brackets": (("a[[]0]",), ["a[0].weight"]),
}


@pytest.mark.parametrize(("modules", "wanted"), PATTERNS.values(), ids=PATTERNS)
def test_globs_match_modules(modules: tuple[str, ...], wanted: list[str]) -> None:
    """Patterns are fnmatch on the whole dotted name, case-sensitive, and `*` crosses dots."""
    assert picked(rule(*modules)) == wanted


def test_globs_match_parameters() -> None:
    """An LSTM's weights are reached by weight_*."""
    assert picked(rule("rnn", params=("weight_*",))) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]


def test_excluded_modules_stay_out() -> None:
    """An exclusion wins over every rule."""
    assert picked(rule("layer1.*"), exclude=("*.bn1", "*.10.*")) == ["layer1.0.conv1.weight"]


def test_the_last_rule_that_matches_wins() -> None:
    """Each parameter has one rule, the last in the list that fits it."""
    rules = (rule("*", amount=0.5), rule("layer1.*", amount=2), rule("*.bn1", amount=0))

    found = {pick.parameter.name: pick.rule.amount for pick in select(PARAMETERS, Selection(rules))}

    assert found["weight"] == 0.5
    assert found["layer1.10.conv1.weight"] == 2
    assert found["layer1.0.bn1.weight"] == 0


def test_a_name_is_told_from_a_pattern() -> None:
    """Only what both patterns spell out was named."""
    [named] = select(PARAMETERS, Selection((rule("Layer1.fc"),)))
    [matched] = select(PARAMETERS, Selection((rule("Layer1.f*"),)))
    partly = select(PARAMETERS, Selection((rule("rnn", params=("weight_*",)),)))

    assert named.by_name
    assert not matched.by_name
    assert not any(pick.by_name for pick in partly)


def test_aliases_can_be_matched_and_excluded() -> None:
    """A tied weight is reached by each of its names."""
    aliases = {"Layer1.fc.weight": ("head.weight",)}

    def by(pattern: str, *exclude: str) -> list[str]:
        found = select(PARAMETERS, Selection((rule(pattern),), exclude), aliases=aliases)
        return [pick.parameter.name for pick in found]

    assert by("head") == ["Layer1.fc.weight"]
    assert by("Layer1.*", "head") == []


IDLE = {
    "typo": ("layer1.0.conv2", "the nearest are 'layer1.0.conv1'"),
    "prefix": ("layer1.0", "'layer1.0.*' matches 2 of them"),
    "prefix-with-weight": ("Layer1.fc.weigth", "the nearest are 'Layer1.fc'"),
    "inside": ("con*1*x", "there are 7: '', 'layer1.0.conv1'"),
    "part": ("rn", "the nearest is 'rnn'"),
    "nothing-alike": ("zzz", "there are 7"),
}


@pytest.mark.parametrize(("pattern", "hint"), IDLE.values(), ids=IDLE)
def test_a_pattern_without_a_match_names_the_nearest(pattern: str, hint: str) -> None:
    """The error says what may have been meant."""
    with pytest.raises(SelectionError) as caught:
        picked(rule(pattern))

    assert f"no module matches {pattern!r}; " in str(caught.value)
    assert hint in str(caught.value)


def test_all_idle_patterns_are_named_at_once() -> None:
    """Modules, exclusions and parameters: one error."""
    with pytest.raises(SelectionError) as caught:
        picked(rule("x1"), rule("rnn", params=("kernel",)), exclude=("x2",))

    assert len(str(caught.value).splitlines()) == 3
    assert "they have 'weight_hh_l0', 'weight_ih_l0'; choose with --param" in str(caught.value)


# --- amounts and sizes -----------------------------------------------------------------------

AMOUNTS = {
    "1": 1,
    "1.0": 1.0,
    "0": 0,
    "0.25": 0.25,
    "25%": 0.25,
    "100%": 1.0,
    "33.3%": 0.333,
    "0.1 %": 0.001,
    " 3 ": 3,
    "1e-1": 0.1,
    "+2": 2,
    "007": 7,
}


@pytest.mark.parametrize(("text", "wanted"), AMOUNTS.items(), ids=AMOUNTS)
def test_amounts_are_understood(text: str, wanted: Amount) -> None:
    """A whole number counts channels, a fraction or a percentage is a part of them."""
    amount = parse_amount(text)

    assert (amount, type(amount)) == (wanted, type(wanted))


def test_minus_zero_is_zero() -> None:
    """It would be told as -0%."""
    assert str(parse_amount("-0.0")) == "0.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "%",
        "-1",
        "-0.5",
        "1.5",
        "101%",
        "nan",
        "inf",
        "nan%",
        "a",
        "1,5",
        "0x1",
        "9" * 5000,
        "1 2",
    ],
)
def test_other_amounts_are_refused(text: str) -> None:
    """What is no amount anywhere is a usage error that says how to write one."""
    with pytest.raises(UsageError, match="neither a whole number of channels"):
        parse_amount(text)


@pytest.mark.parametrize("amount", [True, None, "1", -1, 1.5, float("nan"), [1]], ids=repr)
def test_values_that_are_no_amount_are_refused(amount: object) -> None:
    """A bool, a text or a list is no amount either."""
    with pytest.raises(UsageError):
        check_amount(amount)


SIZES = {
    "1": 1,
    "5GB": 5 * 10**9,
    "5gb": 5 * 10**9,
    "500MiB": 500 * 2**20,
    "1.5 kB": 1500,
    "2T": 2 * 10**12,
    "10b": 10,
    "3Ki": 3072,
}


@pytest.mark.parametrize(("text", "wanted"), SIZES.items(), ids=SIZES)
def test_sizes_are_understood(text: str, wanted: int) -> None:
    """Decimal and binary units, with or without the B."""
    assert parse_size(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "0.1b", "GB", "-5GB", "5XB", "5 G B", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    """A size is a positive number of bytes."""
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


# --- recipes ---------------------------------------------------------------------------------


def recipe(path: Path, text: str, amount: Amount | None = 0.5) -> tuple[Rule, ...]:
    """The rules of a recipe, with flags to fill it."""
    (path / "recipe.toml").write_text(text)
    return read_recipe(path / "recipe.toml", modules=["*"], params=["weight"], amount=amount, dim=1)


def test_flags_fill_what_a_rule_leaves_out(tmp_path: Path) -> None:
    """A rule says what differs; globs can be one or a list, amounts a number or a text."""
    text = """
    [[rules]]
    [[rules]]
    module = "layer1.*"
    amount = "25%"
    [[rules]]
    module = ["a", "b"]
    param = ["weight_*", "kernel"]
    amount = 3
    dim = 0
    """

    rules = recipe(tmp_path, text)

    assert rules == (
        Rule(("*",), ("weight",), 0.5, 1),
        Rule(("layer1.*",), ("weight",), 0.25, 1),
        Rule(("a", "b"), ("weight_*", "kernel"), 3, 0),
    )


BAD_RECIPES = {
    "not-toml": ("rules = [", InputError, "is not TOML"),
    "too-deep": ("a = " + "[" * 100_000, InputError, "is not TOML"),
    "not-text": ("\udcff", InputError, "is not TOML"),
    "empty": ("", UsageError, "must hold a list of tables"),
    "no-list": ("rules = 3", UsageError, "must hold a list of tables"),
    "empty-list": ("rules = []", UsageError, "must hold a list of tables"),
    "more": ("seed = 3\n[[rules]]", UsageError, "and nothing else"),
    "no-table": ("rules = [3]", UsageError, "rule 1: a rule has only the keys"),
    "bad-key": ("[[rules]]\n[[rules]]\nmodul = 'a'", UsageError, "rule 2: a rule has only"),
    "bad-module": ("[[rules]]\nmodule = 3", UsageError, "module and param are globs"),
    "no-module": ("[[rules]]\nmodule = []", UsageError, "module and param are globs"),
    "bad-param": ("[[rules]]\nparam = ['a', 1]", UsageError, "module and param are globs"),
    "bad-dim": ("[[rules]]\ndim = 1.0", UsageError, "dim must be a whole number"),
    "bool-dim": ("[[rules]]\ndim = true", UsageError, "dim must be a whole number"),
    "bad-amount": ("[[rules]]\namount = 1.5", UsageError, "rule 1: the amount 1.5 is neither"),
    "bool-amount": ("[[rules]]\namount = true", UsageError, "rule 1: the amount True is neither"),
    "date-amount": ("[[rules]]\namount = 2020-01-01", UsageError, "rule 1: the amount"),
    "text-amount": ("[[rules]]\namount = 'much'", UsageError, "rule 1: the amount 'much'"),
}


@pytest.mark.parametrize(("text", "error", "message"), BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_a_bad_recipe_is_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    """The error names the file, the rule and what is wrong with it."""
    (tmp_path / "recipe.toml").write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(error, match=message):
        read_recipe(tmp_path / "recipe.toml", modules=["*"], params=["w"], amount=1, dim=0)


def test_a_rule_needs_an_amount(tmp_path: Path) -> None:
    """Without --amount each rule must have its own."""
    assert recipe(tmp_path, "[[rules]]\namount = 1", None)[0].amount == 1
    with pytest.raises(UsageError, match="rule 1 has no amount, and --amount is not given"):
        recipe(tmp_path, "[[rules]]", None)


def test_a_missing_recipe_is_an_input_error(tmp_path: Path) -> None:
    """The system's reason is in the message."""
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "none", modules=["*"], params=["w"], amount=1, dim=0)


# --- whole names, as tables show them --------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "exclude", "wanted"),
    [
        (("fc.weight",), (), {"fc.weight"}),
        (("fc.bias",), (), {"fc.bias"}),
        (("fc.*",), (), {"fc.weight", "fc.bias"}),
        (("block.*.fc.weight",), (), {"block.0.fc.weight", "block.1.fc.weight"}),
        (("*",), ("fc.weight",), {"block.0.fc.weight", "block.1.fc.weight"}),
        (("fc", "block.0.fc.bias"), (), {"fc.weight", "block.0.fc.bias"}),
    ],
)
def test_a_whole_name_selects_its_parameter(
    modules: tuple[str, ...], exclude: tuple[str, ...], wanted: set[str]
) -> None:
    """Where no module is called so; --param, here "weight", is for modules."""
    names = [f"{module}.{param}" for module in ("fc", "block.0.fc", "block.1.fc")
             for param in ("weight", "bias")]  # fmt: skip
    parameters = [Parameter(name, TensorInfo(name, "F32", (4, 4))) for name in names]

    found = select(parameters, Selection((rule(*modules),), exclude))

    assert {each.parameter.name for each in found} == wanted
