"""Commands with placeholders."""

import shlex
import subprocess
from dataclasses import replace

import pytest

from prune_cli.errors import UsageError
from prune_cli.sweep.template import (
    PLACEHOLDERS,
    Values,
    check_templates,
    environment_of,
    fill,
    fill_path,
)

VALUES = Values(
    model="/tmp/my sweep/it's.safetensors",
    tuned="/tmp/tuned",
    report="/tmp/report.json",
    seed="3",
    amount="0.25",
    allocation="uniform",
    trial="a0.25-s3",
    dir="/tmp/my sweep",
)


def test_every_placeholder_reaches_the_shell_as_one_word() -> None:
    """A shell itself takes the command apart again."""
    template = "printf '%s\\n' " + " ".join(f"{{{name}}}" for name in PLACEHOLDERS)

    out = subprocess.check_output(["/bin/sh", "-c", fill(template, VALUES)], text=True)

    assert out.splitlines() == [getattr(VALUES, name) for name in PLACEHOLDERS]


@pytest.mark.parametrize("path", ["a b", "$(touch x)", "`id`", "a'b\"c", "-rf", ";ls", "a\nb"])
def test_a_path_is_never_read_as_shell(path: str) -> None:
    """Whatever the user's folders are called."""
    command = fill("eval {model}", replace(VALUES, model=path))

    assert shlex.split(command) == ["eval", path]


def test_an_unknown_placeholder_is_refused_with_those_that_there_are() -> None:
    """All of them at once, by the option they stand in."""
    with pytest.raises(UsageError) as refused:
        check_templates({"--eval": "eval {modle} {x}", "--finetune": "train {model} {tune}"})

    assert "--eval: there is no placeholder {modle}" in str(refused.value)
    assert "--eval: there is no placeholder {x}" in str(refused.value)
    assert "--finetune: there is no placeholder {tune}" in str(refused.value)
    assert "{model}, {tuned}" in str(refused.value)


@pytest.mark.parametrize(
    "template",
    ["${HOME}/x", "find . -exec ls {} +", "a{1,2}", "{ ls; }", "grep -E 'a{3}'", "{{model}}"],
)
def test_the_braces_of_the_shell_are_its_own(template: str) -> None:
    """Nothing of them looks like a placeholder; doubled ones are meant literally."""
    check_templates({"--eval": template})

    assert fill(template, VALUES) == template.replace("{{model}}", "{model}")


def test_the_environment_has_the_same_values() -> None:
    """PRUNE_MODEL is what {model} is."""
    assert environment_of(VALUES)["PRUNE_MODEL"] == VALUES.model
    assert len(environment_of(VALUES)) == len(PLACEHOLDERS)


def test_a_path_is_filled_in_unquoted() -> None:
    """No shell reads it."""
    assert fill_path("{dir}/m.json", VALUES) == "/tmp/my sweep/m.json"
