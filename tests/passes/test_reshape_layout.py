"""Reshapes in another layout than the plain one."""

from __future__ import annotations

import numpy as np
import pytest
from qcompile.passes.integerize.shapes import plan_reshape, refine

CHANNELS_LAST = (0, 3, 1, 2)
CASES = {  # logical shape, layout, new shape -> layout
    "channels split": ((1, 8, 5, 6), CHANNELS_LAST, (1, 2, 4, 5, 6), (0, 3, 4, 1, 2)),
    "channels shuffled": ((1, 4, 2, 5, 6), (0, 4, 3, 1, 2), (1, 8, 5, 6), CHANNELS_LAST),
    "pixels out of channels": ((1, 8, 5, 2, 6, 2), (0, 3, 1, 4, 2, 5), (1, 8, 10, 12), CHANNELS_LAST),
    "pixels into channels": ((1, 8, 2, 2, 5, 6), (0, 5, 2, 4, 1, 3), (1, 32, 5, 6), CHANNELS_LAST),
    "pixels of an image": ((1, 8, 5, 6), CHANNELS_LAST, (1, 8, 30), (0, 2, 1)),
    "heads joined": ((1, 20, 16, 4), (0, 2, 1, 3), (1, 20, 64), (0, 1, 2)),
    "flattened": ((1, 8, 5, 6), CHANNELS_LAST, (1, 240), (0, 1)),
    "plain": ((4, 6, 5), (0, 1, 2), (24, 5), (0, 1)),
    "one element": ((1, 1), (0, 1), (1,), (0,)),
}


@pytest.mark.parametrize("name", CASES)
def test_reshaped_values_and_layout(name):
    shape, axes, new, layout = CASES[name]
    logical = np.arange(np.prod(shape)).reshape(shape)
    physical = logical.transpose(np.argsort(axes))
    plan = plan_reshape(shape, axes, new)
    made = physical.reshape(plan.split).transpose(plan.order).reshape(plan.merged)
    assert np.array_equal(made.transpose(plan.axes), logical.reshape(new))
    assert [n for n in np.argsort(plan.axes) if new[n] > 1] == [n for n in np.argsort(layout) if new[n] > 1]


@pytest.mark.parametrize("name", ["channels split", "pixels of an image", "plain"])
def test_nothing_moves_where_memory_stays_in_order(name):
    shape, axes, new, _ = CASES[name]
    assert not plan_reshape(shape, axes, new).moves


def test_shapes_that_cut_an_axis_differently_have_no_refinement():
    assert refine((4, 6), (6, 4)) is None
    assert plan_reshape((1, 4, 6), (0, 2, 1), (1, 6, 4)) is None
    assert refine((8, 30), (2, 4, 5, 6)) == [2, 4, 5, 6]


def test_empty_tensors_take_the_plain_way():
    assert refine((0, 4), (4, 0)) is None
