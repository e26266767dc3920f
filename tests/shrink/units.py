"""Builders for the tests of units: small models of transformers and of code, and how they are masked."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TEXT = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 8}
MIXED = {**GROUPED, "num_experts_per_tok": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", GROUPED),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 12, "sliding_window": 4}),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 32},
    ),
    "neox": ("GPTNeoXForCausalLM", TEXT),
    "bert": ("BertForMaskedLM", TEXT),
    "modernbert": ("ModernBertForMaskedLM", {**TEXT, "local_attention": 4}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 99, "d_model": 48, "d_kv": 12, "d_ff": 40, "num_layers": 3, "num_heads": 4}
        | {"decoder_start_token_id": 0},
    ),
    "vit": ("ViTForImageClassification", {**TEXT, **IMAGE}),
    "beit": ("BeitForImageClassification", {**TEXT, **IMAGE}),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 3], "image_size": 32},
    ),
    "mixtral": ("MixtralForCausalLM", {**MIXED, "num_local_experts": 4}),
    "qwen3moe": (
        "Qwen3MoeForCausalLM",
        {**MIXED, "num_experts": 6, "moe_intermediate_size": 24, "head_dim": 12},
    ),
    "gptoss": (
        "GptOssForCausalLM",
        {**MIXED, "num_local_experts": 5, "head_dim": 12, "sliding_window": 4},
    ),
}
"""For each: the class of transformers, and its config."""


def make_model(name: str) -> nn.Module:
    """A small model whose every tensor is drawn, so that no two heads, experts or layers are alike."""
    import transformers

    kind, numbers = MODELS[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    return draw(model_class(model_class.config_class(**numbers)).eval())


def draw(model: nn.Module) -> nn.Module:
    """The model with values in all of its tensors."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                is_matrix = tensor.dim() > 1
                values = torch.randn_like(tensor) * 0.15 if is_matrix else torch.rand_like(tensor)
                tensor.copy_(values if is_matrix else values + 0.1)
    return model


def inputs_of(model: Any) -> dict[str, Tensor]:
    """A batch of two; of text, one is padded."""
    torch.manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size)}
    ids, mask = torch.randint(5, 99, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    ids[1, 9:] = mask[1, 9:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.randint(5, 99, (2, 7))
    return given


def outputs(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits."""
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    return logits


def shrink_folder(folder: Path, output: Path, **units: Any) -> Any:
    """Shrink as `shrink_checkpoint` does, but plan in this process; return the report."""
    from prune_cli.api import carry_out
    from prune_cli.checkpoint import open_checkpoint
    from prune_cli.plan.facts import SHRUNK, Options, Plan
    from prune_cli.plan.selection import Rule
    from prune_cli.plan.shrink import ShrinkOptions
    from prune_cli.plan.units import CHANNELS, check_units
    from prune_cli.shrink.plan import plan_shrink
    from prune_cli.shrink.request import Request
    from prune_cli.shrink.shrink import find_source, shapes_of
    from prune_cli.write.target import Execution, find_target

    exclude, as_code = tuple(units.pop("exclude", ())), units.pop("as_code", False)
    seed, amounts = units.pop("seed", 0), check_units(units)
    checkpoint = open_checkpoint(folder)
    rule = Rule(("*",), ("weight",), amounts.get(CHANNELS, 0), 0)
    asked = ShrinkOptions(1, False, None, {}, (), as_code or None, amounts)
    options = Options(None, 0, seed, exclude=exclude, shrink=asked)

    def decide() -> Plan:
        source = find_source(checkpoint, None, {}, ())
        wanted = Request((rule,), exclude, seed, as_code=as_code, units=amounts)
        return Plan(SHRUNK, options, (), shrink=plan_shrink(source, wanted, shapes_of(checkpoint)))

    target = find_target(checkpoint, output, suffix="shrunk")
    return carry_out(checkpoint, decide, target, Execution("cpu"))


def mask(model: nn.Module, state: dict[str, Tensor], plan: Any) -> nn.Module:
    """The whole model with everything masked that a plan removes.

    Heads by zeros in the columns that read them, dims of heads wherever they are, layers by giving back what they are given, experts
    by minus infinity in what their router says of them.
    """
    for group in plan.groups:
        if group.unit == "heads":
            same = group.root.split(".")[-2:]
            for name, dim in group.members:
                if name.split(".")[-2:] == same:
                    for head in group.removed:
                        state[name].narrow(dim, head * group.width, group.width).zero_()
        elif group.unit == "head-dim":
            for name, dim in group.members:
                every = range(state[name].shape[dim])
                gone = [index for index in every if index % group.channels in group.removed]
                state[name].index_fill_(dim, torch.tensor(gone), 0)
    return model


def pass_over(model: nn.Module, plan: Any) -> None:
    """Let the layers that a plan removes give back what they are given."""
    lists = {path: module for path, module in model.named_modules() if _is_list(module)}
    for group in plan.groups:
        if group.unit == "layers":
            layers: Any = lists.get(group.root) or next(iter(lists.values()))
            for number in group.removed:
                layers[number].forward = _passing(layers[number].forward)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1


def _passing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def passing(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    return passing


def never_choose(model: nn.Module, plan: Any) -> None:
    """Let the routers say minus infinity of the experts that a plan removes."""
    for group in plan.groups:
        if group.unit == "experts":
            number = group.root.split(".layers.")[1].split(".")[0]
            [router] = [
                module
                for path, module in model.named_modules()
                if f".layers.{number}." in path and type(module).__name__.endswith("Router")
            ]
            router.forward = _routing(router, list(group.removed))


def _routing(router: Any, removed: list[int]) -> Callable[..., Any]:
    """The forward of a router whose every softmax and choice is of masked logits."""
    forward, linear = router.forward, torch.nn.functional.linear

    def masked(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias).index_fill(-1, torch.tensor(removed), float("-inf"))

    def routing(*args: Any, **kwargs: Any) -> Any:
        torch.nn.functional.linear = masked
        try:
            return forward(*args, **kwargs)
        finally:
            torch.nn.functional.linear = linear

    return routing


def masked_model(whole: Any, folder: Path, plan: Any, scratch: Path) -> Any:
    """The model of `folder` with the units of a plan masked, as plain from_pretrained loads it."""
    state = load_file(folder / "model.safetensors")
    mask(whole, state, plan)
    scratch.mkdir()
    save_file(state, scratch / "model.safetensors", {"format": "pt"})
    (scratch / "config.json").write_text((folder / "config.json").read_text())
    model = type(whole).from_pretrained(scratch).eval()
    pass_over(model, plan)
    never_choose(model, plan)
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in training, without the chance in it."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or name == "p"):
                setattr(module, name, 0.0)
    return model.train()
