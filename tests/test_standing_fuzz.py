"""A few seconds of the standing fuzz, and what it found once; more by `python -m tests.fuzz`."""

import json
import random
import time
from itertools import islice
from pathlib import Path

import pytest

from prune_cli import apply_report, inspect_checkpoint, prune_checkpoint, verify_checkpoint
from prune_cli.errors import InputError, RequestError
from prune_cli.report.report import from_json
from tests import build
from tests.fuzz.changes import cut_json
from tests.fuzz.minimise import minimise
from tests.fuzz.subjects import Subject, subjects
from tests.fuzz.watch import Case, Finding, cases, group_of, run_case

SECONDS = 5


def test_damaged_inputs_are_refused_or_right(tmp_path: Path) -> None:  # noqa: ARG001
    """Cases of each kind in turn, the same ones each time, as many as fit a few seconds."""
    stop = time.monotonic() + SECONDS
    kinds = len({group_of(kind) for kind in subjects()})

    for ran, case in enumerate(islice(cases(seed=0), 1000)):
        if time.monotonic() > stop and ran >= 2 * kinds:
            break
        found = run_case(case)
        assert not isinstance(found, Finding), f"{case}: {found.told}"


def test_every_subject_is_right_before_it_is_damaged(tmp_path: Path) -> None:
    """So that what is refused is refused for its damage: each can be pruned, or is a report."""
    for kind, subject in subjects().items():
        if kind != "odd tensors":
            refused = _write_and_open(subject, tmp_path / kind.replace(" ", "-"))
            assert refused is None, f"{kind}: {refused}"


def _write_and_open(subject: Subject, folder: Path) -> InputError | None:
    folder.mkdir()
    path = subject.write(folder, subject.tokens(random.Random(0)))
    try:
        inspect_checkpoint(path)
        if subject.role == "report":
            from_json((folder / "report").read_text())
    except InputError as error:
        return error
    return None


def test_a_case_is_made_short(tmp_path: Path) -> None:  # noqa: ARG001
    """What does not matter for a fault is left out."""
    subject = Subject(
        "short",
        lambda _: cut_json(b'{"a": 1, "b": 2, "c": 3}'),
        lambda tokens, _: tokens,
        write=_fail_on_b,
    )
    short = minimise(
        Finding(Case("short", "0"), "ValueError in test_standing_fuzz.py:_fail_on_b ", ""), subject
    )

    assert short == [b'"b"']


def _fail_on_b(folder: Path, tokens: list[bytes]) -> Path:
    if b'"b"' in tokens:
        raise ValueError
    return folder


# --- what it found ----------------------------------------------------------------------------


def test_names_with_empty_parts_have_patterns_too(tmp_path: Path) -> None:
    """No pattern is proposed for a module that none can name."""
    path = build.safetensors(tmp_path / "m", {"a..weight": build.tensors()["fc.weight"]})

    found = inspect_checkpoint(path, globs=True)

    assert all(glob.tensors == 1 for glob in found.globs or ())


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_a_dtype_that_torch_has_not_is_listed_and_not_pruned(tmp_path: Path, dtype: str) -> None:
    """Nothing could load the output."""
    header = {
        "a.weight": build.entry(0, 16, 2, 2, dtype="F32"),
        "b": build.entry(16, 22, 8, dtype=dtype),
    }
    path = build.raw_safetensors(tmp_path / "m", header, bytes(range(22)))

    found = inspect_checkpoint(path)

    assert dtype in {facts.dtype for facts in found.parameters}
    with pytest.raises(InputError, match=f"torch has no dtype for 'b' .{dtype}"):
        prune_checkpoint(path, tmp_path / "out", modules="a", amount=1, dim=0, dry_run=True)


def test_a_report_with_an_impossible_choice_is_refused(tmp_path: Path) -> None:
    """Multiples of no channels cannot be left."""
    model = build.safetensors(tmp_path / "m", build.tensors())
    out = tmp_path / "out.safetensors"
    report = prune_checkpoint(model, out, amount=0.5, dim=0, criterion="l1")
    place = tmp_path / "edited.json"
    place.write_text(report.to_json().replace('"round_to": 1', '"round_to": 0'))

    for call in (
        lambda: verify_checkpoint(out, report=place),
        lambda: apply_report(place, model, tmp_path / "x"),
    ):
        with pytest.raises(InputError, match="its options are impossible: round_to=0"):
            call()


def test_half_a_character_in_an_index_is_refused(tmp_path: Path) -> None:
    """No message could name the tensor."""
    folder = build.write_folder(tmp_path / "m", {"model.safetensors": build.tensors()}, index=None)
    index = {"weight_map": {"\ud800": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(InputError, match="half a character"):
        inspect_checkpoint(folder)


def test_an_alias_whose_mask_would_have_the_name_of_a_tensor_is_refused(tmp_path: Path) -> None:
    """The output could not say which of the two it means."""
    fc = build.tensors()["fc.weight"]
    tensors = {"a.weight": fc, "b.weight_mask": fc[:2].clone()}
    model = build.safetensors(tmp_path / "m", tensors, {"b.weight": "a.weight"})

    with pytest.raises(RequestError, match="b.weight_mask"):
        prune_checkpoint(model, tmp_path / "out", modules="a", amount=1, dim=0, bake=False)
