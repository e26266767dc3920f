"""What the table of architectures and the fuzz check, on a few; all by `python -m tests.architectures`."""

from pathlib import Path

import pytest

from prune_cli.errors import RequestError
from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.shrink import shrink_checkpoint
from tests.architectures.check import refuse_other_outputs
from tests.architectures.fuzz import try_graph
from tests.architectures.run import Here, build, inputs_of, shrink_and_check
from tests.architectures.zoo import ARCHITECTURES

pytest.importorskip("transformers")


def find(title: str):
    """An architecture by its title."""
    return next(each for each in ARCHITECTURES if each.title == title)


@pytest.mark.parametrize("title", ["GPTJForCausalLM", "ModernBertForMaskedLM"])
def test_an_architecture_is_what_the_masked_one_is(title: str, tmp_path: Path) -> None:
    """Slices, outputs in evaluation and in training, two texts of which one is padded."""
    outcome = shrink_and_check(find(title), tmp_path)

    assert outcome.verdict == "written", outcome.reason
    assert outcome.flops > 0.05


@pytest.mark.parametrize("seed", range(1_000_000, 1_000_006))
def test_a_random_graph_is_shrunk_rightly_or_refused(seed: int) -> None:
    """More by `python -m tests.architectures.fuzz`."""
    outcome = try_graph(seed)

    assert outcome.verdict in ("written", "refused"), outcome.reason


def test_what_no_config_can_say_is_written_for_load_shrunk(tmp_path: Path) -> None:
    """Bloom's layers are four times as wide as its hidden state, whatever its config says."""
    whole = build(find("BloomForCausalLM"))
    whole.save_pretrained(tmp_path / "whole")

    with pytest.raises(RequestError, match="or --as-code, which leaves the config as it is"):
        shrink_checkpoint(tmp_path / "whole", tmp_path / "small", amount=0.25, planner=Here())
    done = shrink_checkpoint(
        tmp_path / "whole", tmp_path / "small", amount=0.25, as_code=True, planner=Here()
    )

    small = load_shrunk(build(find("BloomForCausalLM")), tmp_path / "small")
    assert done.shrink is not None
    assert done.shrink.config == {}
    assert (tmp_path / "small/config.json").read_text() == (
        tmp_path / "whole/config.json"
    ).read_text()
    refuse_other_outputs(
        whole, small, done.shrink.kept, inputs_of(tmp_path / "whole", whole), training=False
    )


def test_a_rounding_that_works_is_proposed(tmp_path: Path) -> None:
    """43 is no width for four heads."""
    build(find("LlamaForCausalLM")).save_pretrained(tmp_path / "whole")

    with pytest.raises(RequestError, match="or --round-to 2, with which config.json can say it"):
        shrink_checkpoint(
            tmp_path / "whole",
            amount=5,
            exclude=["*.mlp.gate_proj", "*.mlp.up_proj"],
            planner=Here(),
        )


def test_what_is_measured_is_told(tmp_path: Path) -> None:
    """Time, memory and tokens a second, before and after, and what they were measured with."""
    build(find("LlamaForCausalLM")).save_pretrained(tmp_path / "whole")

    done = shrink_checkpoint(
        tmp_path / "whole", tmp_path / "small", amount=0.5, measure=True, planner=Here()
    )

    assert done.shrink is not None
    found = done.shrink.latency
    assert found is not None
    assert (found.batch, found.device) == (1, "cpu")
    assert found.memory is not None
    assert 0 < found.memory["after"] < found.memory["before"]
    assert found.tokens is not None
    assert min(found.tokens.values()) > 0
