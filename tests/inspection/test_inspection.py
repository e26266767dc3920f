"""What inspect knows of a checkpoint: facts, trees of names, patterns, zero channels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prune_cli.checkpoint import Loading
from prune_cli.checkpoint.tensors import nbytes
from prune_cli.errors import DimError, SelectionError
from prune_cli.inspection.facts import (
    DtypeTotal,
    Glob,
    ParameterFacts,
    ZeroCount,
    inspection_to_json,
)
from prune_cli.inspection.globs import propose_globs
from prune_cli.inspection.inspect import inspect_checkpoint
from prune_cli.inspection.outline import outline
from prune_cli.plan.selection import matcher
from tests import build


def facts(
    name: str, shape: tuple[int, ...] = (4, 2), dtype: str = "F32", reason: str | None = None
) -> ParameterFacts:
    """A parameter of that name, prunable if it has two dims and no reason against it."""
    module, _, param = name.rpartition(".")
    size = nbytes(dtype, shape)
    dims = tuple(range(len(shape))) if len(shape) > 1 and reason is None else ()
    return ParameterFacts(
        name=name,
        module=module,
        param=param,
        aliases=(),
        dtype=dtype,
        shape=shape,
        elements=size // 4,
        bytes=size,
        file="model.safetensors",
        mask=None,
        prunable_dims=dims,
        reason=reason,
    )


def llama(layers: int) -> list[ParameterFacts]:
    """The parameters of a decoder in the layout of Hugging Face."""
    blocks = [
        facts(f"model.layers.{layer}.{module}.weight", shape)
        for layer in range(layers)
        for module, shape in (
            ("input_layernorm", (8,)),
            ("mlp.down_proj", (8, 16)),
            ("mlp.up_proj", (16, 8)),
            ("self_attn.q_proj", (8, 8)),
            ("self_attn.v_proj", (8, 8)),
        )
    ]
    return [facts("lm_head.weight", (32, 8)), facts("model.embed_tokens.weight", (32, 8)), *blocks]


def drawn(parameters: list[ParameterFacts], limit: int | None) -> list[str]:
    """The outline as text: two spaces a level, what is closed with dots, counts over one."""
    return [
        "  " * line.depth
        + line.node.label
        + (" ..." if line.node.children and not line.is_open else "")
        + (f" x{len(line.node.parameters)}" if not line.is_open else "").removesuffix(" x1")
        for line in outline(parameters, limit)
    ]


# --- facts -----------------------------------------------------------------------------------


def test_facts_of_a_file_are_those_of_its_header(tmp_path: Path) -> None:
    """Names, shapes, dtypes, sizes and prunable dims follow from the header alone."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    found = inspect_checkpoint(path)

    assert (found.path, found.format, found.files) == ("model.safetensors", "safetensors", 1)
    assert found.bytes == path.stat().st_size
    assert [each.name for each in found.parameters] == sorted(build.tensors())
    by_name = {each.name: each for each in found.parameters}
    assert by_name["conv.weight"].prunable_dims == (0, 1, 2, 3)
    assert by_name["conv.weight"].bytes == 6 * 27 * 4
    assert by_name["fc.bias"].prunable_dims == ()
    assert by_name["fc.bias"].reason is not None and "1-D" in by_name["fc.bias"].reason
    assert by_name["bn.num_batches_tracked"].shape == ()
    assert found.globs is None and all(each.zeros is None for each in found.parameters)


def test_dtypes_are_summed_largest_first(tmp_path: Path) -> None:
    """Each dtype has its total, in the order of bytes."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    found = inspect_checkpoint(path)

    assert found.dtypes == (
        DtypeTotal("F32", 3, 6 * 27 + 6 + 6, 4 * (6 * 27 + 6 + 6)),
        DtypeTotal("BF16", 2, 250, 500),
        DtypeTotal("I64", 1, 1, 8),
    )


def test_torch_files_keep_their_order_and_safetensors_counts(tmp_path: Path) -> None:
    """A torch file is in the order of its modules; safetensors in that of its names' numbers."""
    content = {f"layers.{n}.weight": torch.ones(2, 2) for n in (10, 2, 1)}
    zipped = build.torch_zip(tmp_path / "model.pt", content)
    flat = build.safetensors(tmp_path / "model.safetensors", content)

    in_zip, in_flat = inspect_checkpoint(zipped), inspect_checkpoint(flat)

    assert [each.name for each in in_zip.parameters] == list(content)
    assert [each.name for each in in_flat.parameters] == [*reversed(content)]


def test_folder_names_the_file_of_each_tensor(tmp_path: Path) -> None:
    """Of a folder, a parameter says which shard holds it."""
    names = build.shard_names(2)
    shards = build.split(build.tensors(), names)
    folder = build.write_folder(tmp_path / "model", shards)

    found = inspect_checkpoint(folder)

    assert (found.path, found.files) == ("model", 2)
    assert {each.name: each.file for each in found.parameters} == {
        key: name for name, content in shards.items() for key in content
    }


def test_masks_and_aliases_are_shown_with_their_parameter(tmp_path: Path) -> None:
    """A masked weight is one parameter with a mask; a tied one has its further name."""
    content = build.masked(build.tensors(), {"fc.weight": 3})
    content["head.weight"] = content["conv.weight"]
    path = build.torch_zip(tmp_path / "model.pt", content)

    found = inspect_checkpoint(path)

    by_name = {each.name: each for each in found.parameters}
    assert by_name["fc.weight"].mask == "fc.weight_mask"
    assert by_name["conv.weight"].aliases == ("head.weight",)
    assert "head.weight" not in by_name
    assert sum(total.tensors for total in found.dtypes) == 7


def test_filters_are_those_of_pruning(tmp_path: Path) -> None:
    """Modules, exclusions and parameters are picked by the globs of the main command."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    found = inspect_checkpoint(path, modules=["*c*", "bn"], exclude=["conv"], params=["weight"])

    assert [each.name for each in found.parameters] == ["bn.weight", "fc.weight"]


def test_a_string_is_one_glob(tmp_path: Path) -> None:
    """Not a sequence of globs of one letter each."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    found = inspect_checkpoint(path, modules="*", exclude="conv", params="weight")

    assert [each.name for each in found.parameters] == ["bn.weight", "fc.weight"]


def test_names_of_thousands_of_levels_are_shown(tmp_path: Path) -> None:
    """A hostile file may nest as deep as it likes; Python may not."""
    names = [f"{'a.' * depth}weight" for depth in (1, 500, 3000)]
    path = build.safetensors(tmp_path / "m.safetensors", {n: torch.ones(2, 2) for n in names})

    found = inspect_checkpoint(path, globs=True)

    assert sum(not line.node.children for line in outline(found.parameters, 40)) == 3


def test_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    """The error of the main command, with the nearest names."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    with pytest.raises(SelectionError, match=r"no module matches 'cnv'; the nearest is 'conv'"):
        inspect_checkpoint(path, modules=["cnv"])


def test_why_a_tensor_cannot_be_pruned_is_told_by_name(tmp_path: Path) -> None:
    """A tensor with a zero point has no prunable dims, and the reason says which."""
    content = {"q.weight": torch.ones(4, 4), "q.weight_zero_point": torch.ones(4)}
    path = build.safetensors(tmp_path / "model.safetensors", content)

    found = inspect_checkpoint(path, params=["weight"])

    assert found.parameters[0].prunable_dims == ()
    assert "q.weight_zero_point" in (found.parameters[0].reason or "")


def test_loading_options_reach_the_file(tmp_path: Path) -> None:
    """A nested state dict is found by its key, and what is left out is listed."""
    nested = {"ema": {"a.weight": torch.ones(2, 2)}, "net": {"b.weight": torch.ones(2, 2)}}
    path = build.torch_zip(tmp_path / "model.pt", nested)

    found = inspect_checkpoint(path, loading=Loading(("ema",)))

    assert [each.name for each in found.parameters] == ["a.weight"]
    assert [drop.key for drop in found.dropped] == ["net"]


# --- zeros -----------------------------------------------------------------------------------


def test_zero_channels_are_counted_along_each_dim(tmp_path: Path) -> None:
    """Two zero rows and a zero column are found, each along its dim; a scalar has none."""
    weight = torch.ones(5, 4)
    weight[[1, 3]] = 0
    weight[:, 2] = -0.0
    path = build.safetensors(tmp_path / "m.safetensors", {"a.weight": weight, "n": torch.ones(())})
    seen: list[tuple[str, int]] = []

    found = inspect_checkpoint(path, zeros=True, on_tensor=lambda *call: seen.append(call))

    assert found.parameters[0].zeros == (ZeroCount(0, 5, 2), ZeroCount(1, 4, 1))
    assert found.parameters[1].zeros == ()
    assert seen == [("a.weight", 80), ("n", 4)]


def test_zero_channels_of_a_masked_weight_are_those_of_its_mask(tmp_path: Path) -> None:
    """As for pruning, the mask tells which channels are gone."""
    content = build.masked(build.tensors(), {"fc.weight": 3})
    path = build.safetensors(tmp_path / "model.safetensors", content)

    found = inspect_checkpoint(path, modules=["fc"], params=["weight"], zeros=True, dim=-2)

    assert found.parameters[0].zeros == (ZeroCount(0, 10, 3),)


def test_only_the_dim_that_was_asked_for_is_counted(tmp_path: Path) -> None:
    """A tensor without that dim has no counts."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    found = inspect_checkpoint(path, zeros=True, dim=1)

    counts = {each.name: each.zeros for each in found.parameters}
    assert counts["conv.weight"] == (ZeroCount(1, 3, 0),)
    assert counts["conv.bias"] == ()


def test_dim_that_no_tensor_has_is_an_error(tmp_path: Path) -> None:
    """The error says how many were looked at and what to do."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())

    with pytest.raises(DimError, match=r"none of the 6 tensors has a dim 4; leave out --dim"):
        inspect_checkpoint(path, zeros=True, dim=4)


def test_dtypes_without_a_zero_are_not_counted(tmp_path: Path) -> None:
    """Powers of two have no zero, so there is nothing to count."""
    header = {"a": build.entry(0, 4, 2, 2, dtype="F8_E8M0"), "b": build.entry(4, 8, 2, 2)}
    path = build.raw_safetensors(tmp_path / "m.safetensors", header, bytes(8))

    found = inspect_checkpoint(path, zeros=True)

    assert found.parameters[0].zeros is None
    assert found.parameters[1].zeros == (ZeroCount(0, 2, 2), ZeroCount(1, 2, 2))


# --- outlines --------------------------------------------------------------------------------


def test_short_outline_has_every_parameter() -> None:
    """Modules stand above their parameters, and a single child stands on its parent's line."""
    parameters = [facts("conv.weight"), facts("conv.bias", (4,)), facts("head.out.weight")]

    lines = drawn(parameters, 10)

    assert lines == ["conv", "  weight", "  bias", "head.out.weight"]


def test_long_outline_makes_numbered_modules_one() -> None:
    """Layers that differ by a number only are one line each parameter."""
    lines = drawn(llama(80), 40)

    assert lines == [
        "lm_head.weight",
        "model",
        "  embed_tokens.weight",
        "  layers.*",
        "    input_layernorm.weight x80",
        "    mlp",
        "      down_proj.weight x80",
        "      up_proj.weight x80",
        "    self_attn",
        "      q_proj.weight x80",
        "      v_proj.weight x80",
    ]


def test_outline_beyond_its_limit_closes_the_smallest_modules() -> None:
    """The largest modules are opened first; the others stand for what they hold."""
    lines = drawn(llama(80), 9)

    assert lines == [
        "lm_head.weight",
        "model",
        "  embed_tokens.weight",
        "  layers.*",
        "    input_layernorm.weight x80",
        "    mlp",
        "      down_proj.weight x80",
        "      up_proj.weight x80",
        "    self_attn ... x160",
    ]


def test_outline_without_a_limit_has_every_layer() -> None:
    """Nothing is made one, however long it gets."""
    lines = outline(llama(30), None)

    assert sum(not line.node.children for line in lines) == 152


def test_parameters_of_one_name_and_two_shapes_are_two_lines() -> None:
    """What looks different is not made one."""
    parameters = [facts(f"{n}.weight", (4, 2 + (n == 0))) for n in range(4)]

    lines = drawn(parameters, 3)

    assert lines == ["*", "  weight", "  weight x3"]


def test_few_modules_with_many_lines_are_made_one_too() -> None:
    """The headings count: a tree that is too long by them alone is made shorter."""
    parameters = [facts(f"l.{n}.{p}", (4,)) for n in range(3) for p in ("weight", "bias")]

    lines = drawn(parameters, 8)

    assert lines == ["l.*", "  weight x3", "  bias x3"]


# --- globs -----------------------------------------------------------------------------------


def test_globs_group_the_layers_wide_ones_first() -> None:
    """Every group of modules has a pattern with its counts, below the one that holds it."""
    globs = propose_globs(llama(3))

    assert [("  " * glob.depth) + glob.pattern for glob in globs] == [
        "*",
        "  lm_head",
        "  model.*",
        "    model.embed_tokens",
        "    model.layers.*",
        "      model.layers.*.mlp.*",
        "        model.layers.*.mlp.down_proj",
        "        model.layers.*.mlp.up_proj",
        "      model.layers.*.self_attn.*",
        "        model.layers.*.self_attn.q_proj",
        "        model.layers.*.self_attn.v_proj",
    ]
    assert globs[5] == Glob("model.layers.*.mlp.*", "weight", 3, 6, 6, 768, 3072)


def test_globs_stop_at_their_limit() -> None:
    """The largest groups are opened, and the list stays short."""
    globs = propose_globs(llama(3), limit=4)

    assert [glob.pattern for glob in globs] == ["*", "lm_head", "model.*"]


def test_pattern_of_a_group_matches_nothing_else() -> None:
    """Where `*` would reach past a group, there is no pattern for the group, only for its parts."""
    parameters = [
        facts("a.weight"),
        facts("a.b.weight"),
        facts("a.c.weight"),
        facts("ab.weight"),
    ]

    globs = propose_globs(parameters)

    assert [glob.pattern for glob in globs] == ["*", "a", "a.b", "a.c", "ab"]


def test_module_with_own_parameters_and_children_has_one_pattern() -> None:
    """`attn*` stands for an attention and its projection where nothing else begins so."""
    parameters = [facts("attn.in_proj_weight"), facts("attn.out.weight"), facts("fc.weight")]

    globs = propose_globs(parameters)

    assert [(glob.pattern, glob.param) for glob in globs] == [
        ("*", "*"),
        ("attn*", "*"),
        ("attn", "in_proj_weight"),
        ("attn.out", "weight"),
        ("fc", "weight"),
    ]


def test_names_with_wildcards_in_them_are_escaped() -> None:
    """A pattern matches the very module whose name looks like a pattern."""
    globs = propose_globs([facts("a[0].weight"), facts("a0.weight")])

    assert [glob.pattern for glob in globs] == ["*", "a[[]0]", "a0"]
    assert all(glob.modules == 1 for glob in globs[1:])


def test_parameters_of_an_lstm_get_a_pattern_too() -> None:
    """The pattern for --param is the part that the names have in common."""
    globs = propose_globs([facts("rnn.weight_ih_l0"), facts("rnn.weight_hh_l0")])

    assert [(glob.pattern, glob.param) for glob in globs] == [("*", "weight_*")]


def test_scales_of_quantised_weights_are_no_proposal() -> None:
    """They have two dims, but are left alone when their weight is pruned."""
    globs = propose_globs([facts("fc.weight"), facts("fc.weight_scale_inv")])

    assert [(glob.pattern, glob.param, glob.tensors) for glob in globs] == [("*", "weight", 1)]


def test_nothing_prunable_gives_no_globs() -> None:
    """Norms alone have no channels."""
    assert propose_globs([facts("norm.weight", (4,))]) == ()


def test_parameters_of_the_root_have_an_empty_pattern() -> None:
    """Their module has no name, and `--module ''` picks it."""
    globs = propose_globs([facts("weight"), facts("fc.weight")])

    assert [glob.pattern for glob in globs] == ["*", "", "fc"]


def test_globs_that_no_star_can_make_are_names() -> None:
    """Where every star would reach past the filter, the modules are listed, up to the limit."""
    parameters = [facts(f"l.{number}.weight") for number in range(3)]

    globs = propose_globs(parameters[:2], among=["l.0", "l.1", "l.2"])

    assert [glob.pattern for glob in globs] == ["l.0", "l.1"]


def test_globs_of_a_filtered_checkpoint_match_nothing_outside(tmp_path: Path) -> None:
    """With --module, `*` is no proposal: it would match what was filtered out."""
    content = {f"{m}.{n}.weight": torch.ones(2, 2) for m in ("enc", "dec") for n in range(2)}
    path = build.safetensors(tmp_path / "model.safetensors", content)

    found = inspect_checkpoint(path, modules=["enc.*"], globs=True)

    assert found.globs is not None
    patterns = [glob.pattern for glob in found.globs]
    assert patterns and not any(matcher([pattern])("dec.0") for pattern in patterns)


# --- JSON, and the time it takes ----------------------------------------------------------------


def test_json_is_golden(tmp_path: Path) -> None:
    """Keys in one order, a line for each parameter, and only what was asked for."""
    path = build.safetensors(tmp_path / "m.safetensors", {"fc.weight": torch.ones(2, 3)})

    text = inspection_to_json(inspect_checkpoint(path, zeros=True, dim=0, globs=True))

    assert text == (
        "{\n"
        '  "schema": 1,\n'
        '  "path": "m.safetensors",\n'
        '  "format": "safetensors",\n'
        '  "files": 1,\n'
        f'  "bytes": {path.stat().st_size},\n'
        '  "dtypes": [\n    {"dtype": "F32", "tensors": 1, "elements": 6, "bytes": 24}\n  ],\n'
        '  "parameters": [\n'
        '    {"name": "fc.weight", "module": "fc", "param": "weight", "aliases": [], '
        '"dtype": "F32", "shape": [2, 3], "elements": 6, "bytes": 24, "file": "m.safetensors", '
        '"mask": null, "prunable_dims": [0, 1], "reason": null, '
        '"zeros": [{"dim": 0, "channels": 2, "zero": 0}]}\n'
        "  ],\n"
        '  "globs": [\n'
        '    {"pattern": "*", "param": "weight", "depth": 0, "modules": 1, "tensors": 1, '
        '"elements": 6, "bytes": 24}\n'
        "  ],\n"
        '  "dropped": [],\n'
        '  "notes": []\n'
        "}\n"
    )


def test_json_leaves_out_what_was_not_asked_for(tmp_path: Path) -> None:
    """Without --zeros and --globs there are no such keys."""
    path = build.safetensors(tmp_path / "m.safetensors", {"fc.weight": torch.ones(2, 3)})

    found = json.loads(inspection_to_json(inspect_checkpoint(path)))

    assert "globs" not in found and "zeros" not in found["parameters"][0]


def test_inspect_of_safetensors_does_not_import_torch(tmp_path: Path) -> None:
    """Neither a file nor a folder of safetensors needs torch, with globs or without."""
    folder = build.write_folder(tmp_path / "f", {"model.safetensors": build.tensors()}, index=None)
    program = (
        "import sys; from prune_cli.cli.main import main\n"
        "codes = [main(['inspect', path, *more]) for path in sys.argv[1:]\n"
        "         for more in ([], ['--json'], ['--globs'], ['--module', 'conv'])]\n"
        "sys.exit('torch' in sys.modules or any(codes))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, folder, folder / "model.safetensors"],
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_checkpoint_is_untouched(tmp_path: Path) -> None:
    """Counting zeros changes no byte of the input."""
    path = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    before = path.read_bytes()

    inspect_checkpoint(path, zeros=True)

    assert path.read_bytes() == before
