"""Which tensors share bytes, held against the bytes themselves."""

import time

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_cli.checkpoint.strided import Place, boxes_meet, channels_meet, find_overlaps

View = tuple[int, tuple[int, ...], tuple[int, ...]]


def place(view: View) -> Place:
    """The Place of a view of 4-byte elements: its first element, its shape and its strides."""
    offset, shape, strides = view
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    steps = [(n, 4 * stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    return Place(4 * offset, 4 * (last + 1), (shape, strides), (*steps, (4, 1)), 0)


def elements(view: View) -> set[int]:
    """The elements that a view has."""
    offset, shape, strides = view
    grid = np.indices(shape).reshape(len(shape), -1)
    return set((offset + np.array(strides) @ grid).ravel().tolist())


@st.composite
def slices(draw: st.DrawFn) -> View:
    """A slice of one contiguous tensor of shape (6, 4, 10)."""
    full, strides = (6, 4, 10), (40, 10, 1)
    starts = [draw(st.integers(0, n - 1)) for n in full]
    stops = [draw(st.integers(start + 1, n)) for start, n in zip(starts, full, strict=True)]
    shape = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
    return sum(a * b for a, b in zip(starts, strides, strict=True)), shape, strides


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), slices(), min_size=2))
def test_slices_of_one_tensor_overlap_where_they_share_elements(views: dict[str, View]) -> None:
    """Exactly those that have an element in common with another one are told, and with whom."""
    views = {name: view for name, view in views.items() if list(views.values()).count(view) == 1}

    found = find_overlaps({name: place(view) for name, view in views.items()})

    expected = {
        name
        for name, view in views.items()
        if any(elements(view) & elements(other) for key, other in views.items() if key != name)
    }
    assert found.keys() == expected
    assert all(elements(views[one]) & elements(views[two]) for one, two in found.items())


any_view = st.tuples(
    st.integers(0, 30),
    st.lists(st.integers(1, 4), min_size=2, max_size=2).map(tuple),
    st.lists(st.integers(0, 9), min_size=2, max_size=2).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_view, min_size=2, max_size=4, unique=True))
def test_no_shared_element_is_missed(views: list[View]) -> None:
    """Whatever the strides: those that share an element are told, at times others too."""
    named = dict(zip("abcd", views, strict=False))

    found = find_overlaps({name: place(view) for name, view in named.items()})

    for name, view in named.items():
        if any(elements(view) & elements(other) for key, other in named.items() if key != name):
            assert name in found


@settings(max_examples=300, deadline=None)
@given(any_view, st.integers(0, 1))
def test_no_element_of_two_channels_is_missed(view: View, dim: int) -> None:
    """Whatever the strides; views of a contiguous tensor have none."""
    offset, shape, strides = view
    channels = [
        elements((offset + n * strides[dim], (shape[1 - dim],), (strides[1 - dim],)))
        for n in range(shape[dim])
    ]
    has_shared = len(set().union(*channels)) < sum(map(len, channels))

    assert channels_meet(shape, strides, dim) >= has_shared
    assert not channels_meet((4, 3, 5), (30, 10, 2), dim)
    assert not channels_meet((5, 3, 4), (2, 10, 30), dim)


def test_many_columns_are_told_apart_at_once() -> None:
    """Twenty thousand columns of a matrix reach over one another, and share nothing."""
    columns = {f"c{n}": place((n, (40, 1), (20_000, 1))) for n in range(20_000)}
    begun = time.process_time()

    assert find_overlaps(columns) == {}

    assert time.process_time() - begun < 5


def test_boxes_that_meet() -> None:
    """A pinwheel of boxes has no common point, though no line parts it."""
    pinwheel = [((0, 2), (0, 1)), ((2, 3), (0, 2)), ((1, 3), (2, 3)), ((0, 1), (1, 3))]

    assert not boxes_meet(pinwheel)
    assert boxes_meet([*pinwheel, ((0, 3), (0, 3))])
    assert not boxes_meet([])


def test_the_chunks_of_a_tensor_are_independent() -> None:
    """q, k and v out of one matrix: as torch.chunk gives them."""
    views = torch.zeros(8, 96).chunk(3, dim=1)
    found = {
        str(n): place((view.storage_offset(), tuple(view.shape), view.stride()))
        for n, view in enumerate(views)
    }

    assert find_overlaps(found) == {}
