"""What the pruning core promises, and that stock torch does not keep it where this is why we are.

A `check_…` function states one promise in terms of an implementation, ours or torch's own. It has
to pass with ours, and to fail with the torch that it was written against, which shows that it can.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.reduction import ForkingPickler
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock

from prune_cli import module as ours
from prune_cli.errors import (
    AmountError,
    AmountTypeError,
    DeviceError,
    DimError,
    ParameterError,
    PruneError,
    UsageError,
)
from prune_cli.module import RandomStructured, random_structured
from prune_cli.torch_channels import draw_channels, live_channels
from tests.strided import COMPLEX, FLOAT8, ones, zero_lines

Check = Callable[[ModuleType], None]

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
is_oldest = TORCH == (2, 6)
traced = pytest.mark.skipif(is_oldest, reason="torch 2.6 traces no hook that makes a parameter")
SELECTED = (torch.int8,) if is_oldest else (torch.int8, torch.uint16, *FLOAT8)
"""Dtypes that torch.where takes, beside the usual ones."""

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make another dtype torch's default for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let every test draw the same numbers, whichever tests run."""
    torch.manual_seed(0)


# --- Promises that stock torch breaks -----------------------------------------------------------


def check_exactly_k_under_default_bfloat16(prune: ModuleType) -> None:
    """A draw in bfloat16 has ties at the threshold; exactly k channels go all the same."""
    linear = nn.Linear(1 << 14, 2)

    with default_dtype(torch.bfloat16):
        prune.random_structured(linear, "weight", amount=0.5, dim=1)

    assert len(zero_lines(linear.weight_mask, 1)) == 1 << 13


def check_exactly_k_under_default_float16(prune: ModuleType) -> None:
    """A draw in float16 has ties at the threshold; exactly k channels go all the same."""
    linear = nn.Linear(1 << 14, 2)

    torch.manual_seed(0)
    with default_dtype(torch.float16):
        prune.random_structured(linear, "weight", amount=5001, dim=1)

    assert len(zero_lines(linear.weight_mask, 1)) == 5001


def check_exactly_k_of_128k_channels_with_ties(prune: ModuleType) -> None:
    """Among 128k float32 draws some tie; exactly k channels go where the k-th is one of them."""
    linear = nn.Linear(1, 1 << 17, bias=False)
    draws = torch.rand(1 << 17, generator=torch.Generator().manual_seed(0)).sort().values
    k = int((draws[1:] == draws[:-1]).nonzero()[0]) + 1  # the k-th and the next one tie

    torch.manual_seed(0)
    prune.random_structured(linear, "weight", amount=k, dim=0)

    assert len(zero_lines(linear.weight_mask, 0)) == k


def check_exactly_k_with_meta_as_the_default_device(prune: ModuleType) -> None:
    """A module on the CPU is pruned as asked where new tensors are meta tensors."""
    linear = nn.Linear(6, 10)

    with torch.device("meta"):
        prune.random_structured(linear, "weight", amount=4, dim=0)

    assert len(zero_lines(linear.weight_mask, 0)) == 4


def check_nan_and_inf_are_zero_after_apply(prune: ModuleType) -> None:
    """What is pruned is +0, whatever it was."""
    linear = nn.Linear(3, 6)
    nn.init.constant_(linear.weight, math.nan)
    with torch.no_grad():
        linear.weight[:, 0] = -math.inf
        linear.weight[:, 1] = -1.0

    prune.random_structured(linear, "weight", amount=2, dim=0)

    assert len(zero_lines(linear.weight, 0)) == 2


def check_nan_is_zero_after_prune(prune: ModuleType) -> None:
    """`prune` of a tensor gives +0 for NaN."""
    tensor = torch.full((4, 6), math.nan)

    pruned = prune.RandomStructured(3, dim=1).prune(tensor)

    assert len(zero_lines(pruned, 1)) == 3


def check_nan_is_zero_after_remove(prune: ModuleType) -> None:
    """NaN that training left under the mask is not brought back."""
    linear = nn.Linear(3, 6)
    prune.random_structured(linear, "weight", amount=2, dim=0)
    nn.init.constant_(linear.weight_orig, math.nan)

    stock.remove(linear, "weight")

    assert len(zero_lines(linear.weight, 0)) == 2


def check_no_negative_zero(prune: ModuleType) -> None:
    """A negative weight becomes +0, as a file of zeros has it."""
    linear = nn.Linear(3, 6)
    nn.init.constant_(linear.weight, -1.0)

    prune.random_structured(linear, "weight", amount=2, dim=0)

    assert len(zero_lines(linear.weight, 0)) == 2


def check_pruned_elements_have_no_gradient_even_of_nan(prune: ModuleType) -> None:
    """A NaN that comes back from the loss stops at the mask."""
    linear = nn.Linear(3, 6)
    prune.random_structured(linear, "weight", amount=2, dim=0)

    linear.weight.backward(torch.full((6, 3), math.nan))

    assert zero_lines(linear.weight_orig.grad, 0) == zero_lines(linear.weight_mask, 0)


def check_compute_mask_chooses_among_live_channels(prune: ModuleType) -> None:
    """Called directly, it prunes k more channels than the mask has already."""
    mask = torch.ones(4, 10)
    mask[:, :6] = 0

    new = prune.RandomStructured(amount=3, dim=1).compute_mask(torch.randn(4, 10), mask)

    assert len(zero_lines(new, 1)) == 6 + 3


def check_prune_takes_a_fraction_of_live_channels(prune: ModuleType) -> None:
    """Called directly, a float is a fraction of what the mask leaves."""
    mask = torch.ones(100, 4)
    mask[:60] = 0

    pruned = prune.RandomStructured(amount=0.5, dim=0).prune(torch.ones(100, 4), mask)

    assert len(zero_lines(pruned, 0)) == 60 + 20


def check_compute_mask_gives_what_a_container_gives(prune: ModuleType) -> None:
    """One seed gives one mask, alone and in a container."""
    t, mask = torch.randn(4, 10), torch.ones(4, 10)
    mask[:, 2:6] = 0
    method = prune.RandomStructured(amount=3, dim=1)
    method._tensor_name = "weight"

    torch.manual_seed(3)
    by_container = stock.PruningContainer(method).compute_mask(t, mask.clone())
    torch.manual_seed(3)
    alone = method.compute_mask(t, mask)

    assert torch.equal(by_container, alone)


def check_amount_zero_does_not_alias_the_mask(prune: ModuleType) -> None:
    """A mask that prunes nothing is a new tensor too."""
    mask = torch.ones(4, 3)

    new = prune.RandomStructured(amount=0).compute_mask(torch.ones(4, 3), mask)

    assert new.data_ptr() != mask.data_ptr()


def check_amount_zero_gives_the_dtype_of_the_tensor(prune: ModuleType) -> None:
    """A mask that prunes nothing has the dtype of all masks."""
    t = torch.ones(4, 3, dtype=torch.float16)

    new = prune.RandomStructured(amount=0).compute_mask(t, torch.ones(4, 3, dtype=torch.bool))

    assert new.dtype is torch.float16


def check_a_failing_second_apply_changes_nothing(prune: ModuleType) -> None:
    """After an amount too large, `remove` still finds the hook."""
    linear = nn.Linear(4, 3)
    prune.random_structured(linear, "weight", amount=2, dim=0)

    with pytest.raises(ValueError):
        prune.random_structured(linear, "weight", amount=2, dim=0)

    stock.remove(linear, "weight")
    assert not stock.is_pruned(linear)


def check_a_failing_third_apply_keeps_the_length_of_the_container(prune: ModuleType) -> None:
    """After an amount too large, the container is as it was."""
    linear = nn.Linear(4, 3)
    prune.random_structured(linear, "weight", amount=1, dim=0)
    prune.random_structured(linear, "weight", amount=1, dim=0)
    (container,) = linear._forward_pre_hooks.values()

    with pytest.raises(ValueError):
        prune.random_structured(linear, "weight", amount=2, dim=0)

    assert len(container) == 2
    assert list(linear._forward_pre_hooks.values()) == [container]


def check_apply_keeps_the_order_of_the_parameters(prune: ModuleType) -> None:
    """`weight_orig` stands where `weight` stood."""
    linear = nn.Linear(4, 3)

    prune.random_structured(linear, "weight", amount=1, dim=0)

    assert [name for name, _ in linear.named_parameters()] == ["weight_orig", "bias"]


def check_remove_keeps_the_order_of_the_parameters(prune: ModuleType) -> None:
    """`weight` stands again where it stood."""
    linear = nn.Linear(4, 3)
    prune.random_structured(linear, "weight", amount=1, dim=0)

    stock.remove(linear, "weight")

    assert [name for name, _ in linear.named_parameters()] == ["weight", "bias"]


def check_optimizer_state_loads_onto_its_parameter(prune: ModuleType) -> None:
    """Optimizers number parameters in their order, so state finds its parameter."""

    def momentum(linear: nn.Linear) -> torch.optim.SGD:
        return torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)

    linear = nn.Linear(4, 3)
    optimizer = momentum(linear)
    linear(torch.ones(1, 4)).sum().backward()
    optimizer.step()

    prune.random_structured(linear, "weight", amount=1, dim=0)
    resumed = momentum(linear)
    resumed.load_state_dict(optimizer.state_dict())

    assert resumed.state[linear.bias]["momentum_buffer"].shape == (3,)


def check_deepcopy_right_after_prune(prune: ModuleType) -> None:
    """A pruned module can be copied, as every module can."""
    linear = prune.random_structured(nn.Linear(4, 3), "weight", amount=1, dim=0)

    twin = copy.deepcopy(linear)

    assert torch.equal(twin(torch.ones(1, 4)), linear(torch.ones(1, 4)))


def check_deepcopy_after_a_forward_with_grad(prune: ModuleType) -> None:
    """A recurrent module can be copied with its graph still there."""
    lstm = prune.random_structured(nn.LSTM(4, 3), "weight_ih_l0", amount=5, dim=0)
    lstm(torch.ones(1, 4))

    twin = copy.deepcopy(lstm)

    assert torch.equal(twin(torch.ones(1, 4))[0], lstm(torch.ones(1, 4))[0])
    assert twin._flat_weights[0] is twin.weight_ih_l0


def check_a_second_process_can_be_sent_the_module(prune: ModuleType) -> None:
    """torch.multiprocessing takes a pruned module as an argument."""
    linear = prune.random_structured(nn.Linear(4, 3), "weight", amount=1, dim=0)
    linear(torch.ones(1, 4))

    message = ForkingPickler.dumps(linear)

    assert len(message) > 0


def check_channels_last_survives_a_second_apply(prune: ModuleType) -> None:
    """The second mask has the memory format of the first."""
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    prune.random_structured(conv, "weight", amount=1, dim=0)

    prune.random_structured(conv, "weight", amount=1, dim=1)

    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight_mask.is_contiguous(memory_format=torch.channels_last)


def check_bool_is_no_amount(prune: ModuleType) -> None:
    """True is not one channel."""
    with pytest.raises(TypeError):
        prune.RandomStructured(amount=True)


def check_nan_is_no_amount(prune: ModuleType) -> None:
    """NaN is no fraction."""
    with pytest.raises(ValueError):
        prune.RandomStructured(amount=math.nan)


def check_a_dim_below_range_is_named_with_the_shape(prune: ModuleType) -> None:
    """A dim too low is an IndexError that says what was asked of what."""
    with pytest.raises(IndexError, match=r"-3.*\(4, 3\)"):
        prune.RandomStructured(amount=1, dim=-3).compute_mask(torch.ones(4, 3), torch.ones(4, 3))


def check_a_dim_above_range_is_named_with_the_shape(prune: ModuleType) -> None:
    """A dim too high is an IndexError that says what was asked of what."""
    with pytest.raises(IndexError, match=r"2.*\(4, 3\)"):
        prune.RandomStructured(amount=1, dim=2).compute_mask(torch.ones(4, 3), torch.ones(4, 3))


def check_too_large_an_amount_is_told_with_both_numbers_and_the_name(prune: ModuleType) -> None:
    """The error names the parameter, what was asked and what is possible."""
    with pytest.raises(ValueError, match=r"'weight'.*9.*at most 3"):
        prune.random_structured(nn.Linear(4, 3), "weight", amount=9, dim=0)


def check_remove_leaves_no_stale_weight_in_an_lstm(prune: ModuleType) -> None:
    """The weak references that forward compares are to the weights there are."""
    lstm = prune.random_structured(nn.LSTM(4, 3), "weight_ih_l0", amount=5, dim=0)
    lstm(torch.ones(1, 4))

    stock.remove(lstm, "weight_ih_l0")

    assert [ref() for ref in lstm._flat_weight_refs] == lstm._flat_weights


def check_two_names_of_one_parameter_are_refused(prune: ModuleType) -> None:
    """A parameter tied inside the module is an error that names both names."""
    module = nn.Module()
    module.encoder = nn.Parameter(torch.ones(4, 3))
    module.decoder = module.encoder

    with pytest.raises(ValueError, match=r"'encoder' and 'decoder'"):
        prune.random_structured(module, "encoder", amount=1, dim=0)


DEFECTS: list[Check] = [value for name, value in list(globals().items()) if name[:6] == "check_"]
with_defects = pytest.mark.parametrize("check", DEFECTS, ids=lambda c: c.__name__[6:])


@with_defects
def test_our_class_keeps_the_promise(check: Check) -> None:
    """Each promise holds with the class and the function of this package."""
    check(ours)


@pytest.mark.skipif(TORCH != (2, 13), reason="the defects were verified on torch 2.13")
@with_defects
def test_stock_torch_breaks_the_promise(check: Check) -> None:
    """Each promise is broken by stock torch, so the test above can fail."""
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(stock)


# --- The amount and the draw ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "error"),
    [
        (True, AmountTypeError),
        (False, AmountTypeError),
        (np.True_, AmountTypeError),
        ("0.5", AmountTypeError),
        (None, AmountTypeError),
        (1j, AmountTypeError),
        (math.nan, AmountError),
        (math.inf, AmountError),
        (-1, AmountError),
        (-0.1, AmountError),
        (1.1, AmountError),
        (20.0, AmountError),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}",  # NumPy 1 spells np.True_ "True"
)
def test_what_is_no_amount_is_refused_at_construction(
    amount: object, error: type[PruneError]
) -> None:
    """The class refuses it before there is a tensor, and names it."""
    with pytest.raises(error, match="amount="):
        RandomStructured(amount)


@pytest.mark.parametrize("k", [0, 1, 7])
def test_the_global_generator_moves_on_as_far_as_with_stock(k: int) -> None:
    """After the same call from the same seed, the global generator is in the same state."""
    states = []
    for prune in (ours, stock):
        torch.manual_seed(11)
        prune.random_structured(nn.utils.skip_init(nn.Linear, 4, 7), "weight", amount=k, dim=0)
        states.append(torch.get_rng_state())

    assert torch.equal(*states)


def test_with_a_generator_the_global_one_is_left_alone() -> None:
    """A generator that is given is the only one drawn from, and the hook does not keep it."""
    linear, generator = nn.Linear(4, 7), torch.Generator().manual_seed(2)
    before, own = torch.get_rng_state(), generator.get_state()

    hook = RandomStructured.apply(linear, "weight", 3, 0, generator=generator)

    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(generator.get_state(), own)
    assert hook.generator is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    """One seed gives one set of channels, whatever torch's default dtype is."""
    expected = draw_channels(torch.arange(500), 250, generator=torch.Generator().manual_seed(4))
    linear, generator = nn.Linear(500, 1), torch.Generator().manual_seed(4)

    with default_dtype(dtype):
        random_structured(linear, "weight", 250, 1, generator=generator)

    assert zero_lines(linear.weight_mask, 1) == expected.tolist()
    assert linear.weight_mask.dtype is torch.float32


# --- Failures leave the module as it was --------------------------------------------------------


def facts(module: nn.Module) -> list[object]:
    """List what an apply could change: parameters, buffers, attributes, hooks, in their order."""
    hooks = [(key, id(hook)) for key, hook in module._forward_pre_hooks.items()]
    lengths = [
        len(hook)
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, stock.PruningContainer)
    ]
    tensors = [(name, id(p)) for name, p in [*module._parameters.items(), *module._buffers.items()]]
    return [hooks, lengths, tensors, list(module.__dict__), id(module.__dict__.get("weight"))]


class ElsewhereGenerator(torch.Generator):
    """A generator that says it is on another device; this machine need not have one."""

    device = torch.device("cuda:0")


FAILURES = {
    "amount too large": ({"name": "weight", "amount": 9}, AmountError),
    "amount out of range": ({"name": "weight", "amount": 1.5}, AmountError),
    "amount of a wrong type": ({"name": "weight", "amount": "1"}, AmountTypeError),
    "dim out of range": ({"name": "weight", "amount": 1, "dim": 2}, DimError),
    "dim far below": ({"name": "weight", "amount": 1, "dim": -3}, DimError),
    "no such parameter": ({"name": "wieght", "amount": 1}, ParameterError),
    "one dim only": ({"name": "bias", "amount": 1}, ParameterError),
    "generator elsewhere": (
        {"name": "weight", "amount": 1, "generator": ElsewhereGenerator()},
        DeviceError,
    ),
    "generator is a seed": ({"name": "weight", "amount": 1, "generator": 7}, UsageError),
}


@pytest.mark.parametrize("before", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize(("arguments", "error"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failing_apply_leaves_the_module_as_it_was(
    before: int, arguments: dict[str, object], error: type[PruneError]
) -> None:
    """First, second or third, a failure changes nothing; remove and training go on."""
    linear = nn.Linear(6, 4)
    for _ in range(before):
        random_structured(linear, "weight", amount=1, dim=0)
    known = facts(linear)
    generator_state = torch.get_rng_state()

    with pytest.raises(error):
        random_structured(linear, **arguments)

    assert facts(linear) == known
    assert torch.equal(torch.get_rng_state(), generator_state)
    linear(torch.ones(1, 6)).sum().backward()
    if before:
        stock.remove(linear, "weight")
    assert len(zero_lines(linear.weight, 0)) == before
    assert not stock.is_pruned(linear)


def test_a_missing_parameter_is_answered_with_those_there_are() -> None:
    """The error names the module, the parameter asked for, and the ones it has."""
    with pytest.raises(ParameterError, match=r"Linear has no parameter 'wight'.*weight, bias"):
        random_structured(nn.Linear(2, 2), "wight", amount=1)


def test_a_lazy_parameter_is_refused_until_it_has_a_shape() -> None:
    """A lazy module is unchanged by the refusal, and works after its first forward pass."""
    lazy = nn.LazyLinear(4)
    known = facts(lazy)

    with pytest.raises(ParameterError, match="'weight' of LazyLinear is lazy"):
        random_structured(lazy, "weight", amount=1)

    assert facts(lazy) == known
    lazy(torch.ones(1, 3))
    random_structured(lazy, "weight", amount=1, dim=0)
    assert len(zero_lines(lazy.weight, 0)) == 1


@pytest.mark.parametrize("taken", ["weight_orig", "weight_mask"])
def test_a_taken_name_is_refused(taken: str) -> None:
    """A module that has an attribute of that name already keeps it."""
    linear = nn.Linear(3, 2)
    setattr(linear, taken, "mine")

    with pytest.raises(ParameterError, match=taken):
        random_structured(linear, "weight", amount=1)

    assert getattr(linear, taken) == "mine"


def test_a_parameter_that_is_none_is_refused() -> None:
    """A module without a bias has no bias to prune."""
    with pytest.raises(ParameterError, match="no parameter 'bias'"):
        random_structured(nn.Linear(3, 2, bias=False), "bias", amount=1)


def test_two_pruning_hooks_of_one_parameter_are_refused() -> None:
    """Such a module is not torch's making, and none of the two can be taken for the last."""
    linear = random_structured(nn.Linear(3, 4), "weight", amount=1, dim=0)
    linear.register_forward_pre_hook(next(iter(linear._forward_pre_hooks.values())))

    with pytest.raises(ParameterError, match="2 pruning hooks"):
        random_structured(linear, "weight", amount=1, dim=0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.full((4, 3), 0.5), "0 and 1"), (torch.ones(3, 4), r"\(3, 4\).*\(4, 3\)")],
    ids=["soft", "shape"],
)
def test_a_mask_that_is_none_is_refused(mask: torch.Tensor, message: str) -> None:
    """A mask has the tensor's shape, and no values but 0 and 1."""
    with pytest.raises(ParameterError, match=message):
        RandomStructured(1, dim=0).compute_mask(torch.ones(4, 3), mask)


def test_importance_scores_need_the_shape_of_the_tensor() -> None:
    """They do not matter at random, but wrong ones are a mistake."""
    t = torch.ones(4, 3)

    pruned = RandomStructured(1, dim=0).prune(t, importance_scores=torch.randn(4, 3))

    assert len(zero_lines(pruned, 0)) == 1
    with pytest.raises(ParameterError, match="importance_scores"):
        RandomStructured(1, dim=0).prune(t, importance_scores=torch.randn(3, 4))


# --- The module while it is pruned, and after ---------------------------------------------------


def test_the_hooks_are_those_of_torch() -> None:
    """One method hangs as it is, several in a container; torch's functions see them."""
    linear = nn.Linear(6, 4)

    first = RandomStructured.apply(linear, "weight", 1, 0)
    second = RandomStructured.apply(linear, "weight", 1, 1)
    third = RandomStructured.apply(linear, "weight", 1, 1)

    assert type(first) is RandomStructured
    assert isinstance(second, stock.PruningContainer)
    assert third is second
    assert second[0] is first
    assert [method.dim for method in second] == [0, 1, 1]
    assert list(linear._forward_pre_hooks.values()) == [second]
    assert stock.is_pruned(linear)
    assert isinstance(first, stock.BasePruningMethod)
    assert RandomStructured.PRUNING_TYPE == "structured"


def test_a_float_amount_counts_the_channels_that_remain() -> None:
    """Half of 16, again and again, leaves 8, 4, 2, 1."""
    linear, remaining = nn.Linear(16, 2), []

    for _ in range(4):
        random_structured(linear, "weight", amount=0.5, dim=1)
        remaining.append(len(live_channels(linear.weight_mask, 1)))

    assert remaining == [8, 4, 2, 1]


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "torch's first"])
def test_methods_of_torch_mix_with_ours(ours_first: bool) -> None:
    """Before or after l1_unstructured, both have their effect, in the mask and after remove."""
    linear = nn.Linear(6, 8)
    steps = [
        lambda: random_structured(linear, "weight", amount=2, dim=0),
        lambda: stock.l1_unstructured(linear, "weight", amount=10),
    ]

    for step in steps if ours_first else reversed(steps):
        step()
    random_structured(linear, "weight", amount=1, dim=0)

    mask = linear.weight_mask
    (hook,) = linear._forward_pre_hooks.values()
    assert isinstance(hook, stock.PruningContainer)
    assert len(hook) == 3
    assert len(zero_lines(mask, 0)) >= 3
    assert torch.equal(linear.weight == 0, mask == 0)
    stock.remove(linear, "weight")
    assert torch.equal(linear.weight == 0, mask == 0)
    assert not linear._forward_pre_hooks


def test_an_unstructured_mask_is_kept_under_a_structured_one() -> None:
    """What was pruned before stays so, and channels partly pruned are still live."""
    linear, mask = nn.Linear(6, 4), torch.ones(4, 6)
    mask[:, ::2] = 0
    mask[3] = 0
    stock.custom_from_mask(linear, "weight", mask)

    random_structured(linear, "weight", amount=3, dim=0)

    assert not linear.weight_mask.any()


def test_training_leaves_the_zeros_alone() -> None:
    """Pruned elements have no gradient, so what is under the mask does not move."""
    linear = random_structured(nn.Linear(6, 4), "weight", amount=2, dim=0)
    start = linear.weight_orig.detach().clone()
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)

    for _ in range(3):
        optimizer.zero_grad()
        linear(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()

    pruned = linear.weight_mask == 0
    assert torch.equal(linear.weight_orig[pruned], start[pruned])
    assert not torch.equal(linear.weight_orig[~pruned], start[~pruned])


def test_the_parameter_stays_the_same_object_with_its_latest_values() -> None:
    """An optimizer made before apply still steps the parameter after remove."""
    linear = nn.Linear(6, 4)
    weight = linear.weight

    random_structured(linear, "weight", amount=2, dim=0)
    assert linear.weight_orig is weight
    with torch.no_grad():
        weight.fill_(7.0)
    stock.remove(linear, "weight")

    assert linear.weight is weight
    assert weight.requires_grad
    assert sorted(weight[:, 0].tolist()) == [0, 0, 7, 7]


@pytest.mark.parametrize("source", [ours, stock], ids=["ours", "stock"])
@pytest.mark.parametrize("target", [ours, stock], ids=["ours", "stock"])
def test_state_dicts_load_either_way(source: ModuleType, target: ModuleType) -> None:
    """The keys are exactly torch's, and so is what they hold."""
    trained = source.random_structured(nn.Linear(6, 4), "weight", amount=2, dim=0)
    blank = target.random_structured(nn.Linear(6, 4), "weight", amount=1, dim=1)

    blank.load_state_dict(trained.state_dict())

    assert set(trained.state_dict()) == {"weight_orig", "weight_mask", "bias"}
    assert torch.equal(blank(torch.ones(1, 6)), trained(torch.ones(1, 6)))


def pickled(module: nn.Module) -> nn.Module:
    """Duplicate by pickle."""
    return pickle.loads(pickle.dumps(module))


def saved(module: nn.Module) -> nn.Module:
    """Duplicate by torch.save and torch.load."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("forward", [False, True], ids=["at once", "after forward"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_a_duplicate_computes_and_trains_and_is_removable(
    duplicate: Callable[[nn.Module], nn.Module], again: bool, forward: bool
) -> None:
    """However it is duplicated, the module is whole, and the two share nothing."""
    linear = random_structured(nn.Linear(6, 4), "weight", amount=1, dim=0)
    if again:
        random_structured(linear, "weight", amount=1, dim=1)
    if forward:
        linear(torch.ones(1, 6)).sum().backward()

    twin = duplicate(linear)

    assert torch.equal(twin.weight, linear.weight)
    twin(torch.ones(1, 6)).sum().backward()
    assert twin.weight_orig.grad is not linear.weight_orig.grad
    assert twin.weight.data_ptr() != linear.weight.data_ptr()
    stock.remove(twin, "weight")
    assert stock.is_pruned(linear)
    assert torch.equal(twin.weight, linear.weight)


def double_the_output(module: nn.Module, queue: SimpleQueue) -> None:
    """Be the other process."""
    queue.put((2 * module(torch.ones(1, 6))).tolist())


def test_a_spawned_process_runs_the_module() -> None:
    """A pruned module, after a forward with grad, can be the argument of a spawned process."""
    linear = random_structured(nn.Linear(6, 4), "weight", amount=1, dim=0)
    output = linear(torch.ones(1, 6))
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=double_the_output, args=(linear, queue))

    process.start()
    process.join(60)

    assert process.exitcode == 0
    assert queue.get() == (2 * output).tolist()


def test_channels_last_survives_apply_apply_remove() -> None:
    """The mask, the pruned weight and the parameter keep the memory format throughout."""
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)

    for _ in range(3):
        random_structured(conv, "weight", amount=1, dim=1)
        tensors = (conv.weight, conv.weight_mask, conv.weight_orig)
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
    stock.remove(conv, "weight")

    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert len(zero_lines(conv.weight, 1)) == 3


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda k: k.__name__)
def test_a_recurrent_module_computes_with_the_pruned_weights(kind: type[nn.RNNBase]) -> None:
    """Its list of weights holds the pruned one before remove, and the parameter after."""
    rnn = kind(5, 3, num_layers=2)
    random_structured(rnn, "weight_hh_l0", amount=2, dim=0)
    random_structured(rnn, "weight_ih_l1", amount=0.5, dim=1)

    def weights_are_right() -> bool:
        current = [getattr(rnn, name) for name in rnn._flat_weights_names]
        pairs = zip(rnn._flat_weights, rnn._flat_weight_refs, current, strict=True)
        return all(weight is now and ref() is now for weight, ref, now in pairs)

    assert weights_are_right()
    pruned_output, _ = rnn(torch.ones(2, 5))
    assert weights_are_right()
    stock.remove(rnn, "weight_hh_l0")
    stock.remove(rnn, "weight_ih_l1")
    assert weights_are_right()
    assert torch.equal(rnn(torch.ones(2, 5))[0], pruned_output)


@traced
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_takes_the_module_as_one_graph() -> None:
    """A compiled module gives the same output and gradients, and can be copied after that."""
    linear = random_structured(nn.Linear(6, 4), "weight", amount=2, dim=0)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")

    output = compiled(torch.ones(1, 6))

    output.sum().backward()
    gradient = linear.weight_orig.grad.clone()
    assert torch.equal(output, copy.deepcopy(linear)(torch.ones(1, 6)))
    assert zero_lines(gradient, 0) == zero_lines(linear.weight_mask, 0)


# torch.export warns that a hook sets an attribute, in stock torch as here.
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@traced
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_torch_export_takes_the_module(strict: bool) -> None:
    """An exported module gives the same output, and the module can be copied after that."""
    linear = random_structured(nn.Linear(6, 4), "weight", amount=2, dim=0)

    program = torch.export.export(linear, (torch.ones(1, 6),), strict=strict)

    expected = copy.deepcopy(linear)(torch.ones(1, 6))
    assert torch.equal(program.module()(torch.ones(1, 6)), expected)


def test_gradients_of_gradients_and_functional_calls() -> None:
    """What autograd and torch.func do with a linear layer they do with a pruned one."""
    linear = random_structured(nn.Linear(6, 4, dtype=torch.float64), "weight", amount=2, dim=0)
    mask = linear.weight_mask
    weights = torch.randn(3, 4, 6, dtype=torch.float64)

    def output(weight: torch.Tensor) -> torch.Tensor:
        x = torch.ones(1, 6, dtype=torch.float64)
        return torch.func.functional_call(linear, {"weight_orig": weight}, (x,))

    assert torch.autograd.gradgradcheck(output, weights[0].requires_grad_())
    batched = torch.func.vmap(output)(weights)
    torch.testing.assert_close(batched[2], output(weights[2]))
    assert zero_lines(torch.func.jacrev(output)(weights[0]).sum((0, 1)), 0) == zero_lines(mask, 0)


@pytest.mark.parametrize("dtype", [*COMPLEX, *SELECTED], ids=str)
def test_parameters_of_every_dtype_are_pruned(dtype: torch.dtype) -> None:
    """Quantised and complex parameters are masked and baked like any other."""
    module = nn.Module()
    module.weight = nn.Parameter(ones((6, 4), dtype), requires_grad=False)

    random_structured(module, "weight", amount=2, dim=0)
    random_structured(module, "weight", amount=1, dim=0)

    assert module.weight_mask.dtype is dtype
    assert len(zero_lines(module.weight, 0)) == 3
    stock.remove(module, "weight")
    assert len(zero_lines(module.weight, 0)) == 3


def test_a_complex_weight_has_a_gradient() -> None:
    """Selection is differentiable for complex numbers too."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(6, 4, dtype=torch.complex64))
    random_structured(module, "weight", amount=2, dim=0)

    module.weight.abs().sum().backward()

    assert zero_lines(module.weight_orig.grad, 0) == zero_lines(module.weight_mask, 0)


def test_the_mask_of_a_meta_tensor_needs_no_values() -> None:
    """Shapes are all that a first draw needs; a second one needs the values of the mask."""
    t = torch.ones(6, 4, device="meta")

    mask = RandomStructured(2, dim=0).compute_mask(t)

    assert mask.is_meta
    with pytest.raises(ParameterError, match="meta"):
        RandomStructured(1, dim=0).compute_mask(t, mask)


def test_a_parameter_that_another_module_shares() -> None:
    """The other module is unpruned until remove, which makes the zeros permanent for both."""
    embedding, head = nn.Embedding(8, 3), nn.Linear(3, 8, bias=False)
    head.weight = embedding.weight
    random_structured(head, "weight", amount=3, dim=0)
    assert zero_lines(embedding.weight, 0) == []

    stock.remove(head, "weight")

    assert head.weight is embedding.weight
    assert len(zero_lines(embedding.weight, 0)) == 3


def test_two_names_through_a_submodule_are_refused() -> None:
    """The tie is found wherever inside the module the second name is."""
    model = nn.Module()
    model.head = nn.Parameter(torch.ones(8, 3))
    model.inner = nn.Embedding(8, 3)
    model.inner.weight = model.head
    known = facts(model)

    with pytest.raises(ParameterError, match=r"'head' and 'inner\.weight'"):
        random_structured(model, "head", amount=1)

    assert facts(model) == known


class KeepingTheFirst(RandomStructured):
    """What a user may derive: the first channel is never pruned."""

    def compute_mask(
        self, t: torch.Tensor, default_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Prune one channel less, if the first was drawn."""
        mask = super().compute_mask(t, default_mask)
        mask.select(self.dim, 0).fill_(1)
        return mask


def test_apply_follows_a_compute_mask_that_is_overridden() -> None:
    """A class derived from ours decides what its applies prune, the first and the next."""
    linear = nn.Linear(6, 4)

    KeepingTheFirst.apply(linear, "weight", 1.0, 0)
    assert zero_lines(linear.weight, 0) == [1, 2, 3]
    KeepingTheFirst.apply(linear, "weight", 1.0, 1)

    assert (linear.weight != 0).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


def test_a_compute_mask_that_fails_leaves_the_module_as_it_was() -> None:
    """Whatever goes wrong there, nothing was touched before."""

    class Failing(RandomStructured):
        def compute_mask(self, *_: object) -> torch.Tensor:
            raise RuntimeError("no mask today")

    linear = nn.Linear(6, 4)
    known = facts(linear)

    with pytest.raises(RuntimeError, match="no mask today"):
        Failing.apply(linear, "weight", 1, 0)

    assert facts(linear) == known


def test_apply_keeps_other_hooks_where_they_are() -> None:
    """A second apply takes the place of the first among the module's hooks."""
    linear, calls = random_structured(nn.Linear(6, 4), "weight", amount=1, dim=0), []
    linear.register_forward_pre_hook(lambda *_: calls.append("other"))
    random_structured(linear, "weight", amount=1, dim=0)

    linear(torch.ones(1, 6))

    kinds = [
        isinstance(hook, stock.BasePruningMethod) for hook in linear._forward_pre_hooks.values()
    ]
    assert kinds == [True, False]
    assert calls == ["other"]


def test_non_contiguous_parameters_are_pruned() -> None:
    """A parameter that is a view of something larger keeps its memory through remove."""
    whole = torch.ones(8, 12)
    module = nn.Module()
    module.weight = nn.Parameter(whole[::2, 1::3])

    random_structured(module, "weight", amount=2, dim=0)
    stock.remove(module, "weight")

    assert module.weight.data_ptr() == whole[::2, 1::3].data_ptr()
    assert int((whole == 0).sum()) == 2 * 4


# --- Devices --------------------------------------------------------------------------------------


def test_every_device_gives_the_channels_of_the_cpu(accelerator: str) -> None:
    """One seed gives one mask on every device."""
    masks = []
    for device in ("cpu", accelerator):
        linear, generator = nn.Linear(64, 32, device=device), torch.Generator().manual_seed(6)
        random_structured(linear, "weight", amount=0.5, dim=0, generator=generator)
        random_structured(linear, "weight", amount=0.5, dim=1, generator=generator)
        masks.append(linear.weight_mask.cpu())

    assert torch.equal(*masks)


@needs_cuda
def test_cuda_as_the_default_device_does_not_matter() -> None:
    """Under a CUDA default device a CPU module is pruned as without it."""
    linear, expected = nn.Linear(64, 32), nn.Linear(64, 32)
    random_structured(expected, "weight", 0.5, 0, generator=torch.Generator().manual_seed(6))

    with torch.device("cuda"):
        generator = torch.Generator("cpu").manual_seed(6)
        random_structured(linear, "weight", 0.5, 0, generator=generator)

    assert torch.equal(linear.weight_mask, expected.weight_mask)


@needs_cuda
def test_a_cuda_generator_is_refused() -> None:
    """The draw is made on the CPU, so the generator has to be there."""
    with pytest.raises(DeviceError, match="cuda"):
        RandomStructured(1, generator=torch.Generator("cuda"))
