"""The buffer that holds a group's weights: where each tensor is, casts that never outlive a change, and moving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices


def tensors() -> list[Tensor]:
    """Three of different shapes."""
    return [torch.arange(6.0).reshape(2, 3), torch.tensor(7.0), torch.arange(8.0, 12.0)]


def buffer(dtype: torch.dtype = torch.float32) -> FlatBuffer:
    return FlatBuffer(tensors(), torch.device("cpu"), dtype=dtype)


def test_every_tensor_is_at_its_place_in_the_parameter() -> None:
    flat = buffer()
    assert (flat.starts, flat.sizes) == ([0, 6, 7], [6, 1, 4])
    for position, tensor in enumerate(tensors()):
        place = slice(flat.starts[position], flat.starts[position] + flat.sizes[position])
        assert flat.shapes[position] == tensor.shape
        assert torch.equal(flat.parameter[place].reshape(tensor.shape), tensor)
        assert torch.equal(flat.value(position, torch.float32), tensor)


def test_a_value_in_its_own_dtype_is_a_view_and_in_another_a_copy() -> None:
    flat = buffer()
    with torch.no_grad():
        flat.parameter.add_(1)
    assert flat.value(1, torch.float32) == 8 and flat.value(1, torch.bfloat16) == 8
    assert flat.value(1, torch.bfloat16).dtype == torch.bfloat16


def test_a_cast_ends_with_the_forward_pass() -> None:
    flat = buffer()
    flat.begin_cast(torch.bfloat16)
    assert flat.value(0, torch.bfloat16) is flat.value(0, torch.bfloat16)  # cast once
    flat.end_cast()
    with torch.no_grad():
        flat.parameter.zero_()
    assert not flat.value(0, torch.bfloat16).any()


def test_gradients_are_added_to_the_parameters_slice_and_start_at_zero() -> None:
    flat = buffer()
    slices = Slices(flat, {"down": 0, "up": 2})
    slices.add_gradient("up", torch.ones(4, dtype=torch.bfloat16))
    slices.add_product("down", torch.ones(2, 1), torch.ones(1, 3))
    slices.add_product("down", torch.ones(2, 1).bfloat16(), torch.ones(1, 3).bfloat16())
    assert flat.parameter.grad is not None
    assert flat.parameter.grad.tolist() == [2.0] * 6 + [0.0] + [1.0] * 4
    flat.parameter.grad = None
    assert not flat.gradient(2).any() and flat.parameter.grad is not None


def test_in_a_micro_batch_one_cast_serves_all_passes_and_gradients_are_added_at_its_end() -> None:
    flat = buffer()
    slices = Slices(flat, {"up": 2, "down": 0})
    flat.parameter.grad = torch.ones(11)
    with flat.micro_batch():
        for _ in range(2):  # the second pass is one that checkpointing repeats
            flat.begin_cast(torch.bfloat16)
            first = flat.value(0, torch.bfloat16)
            flat.end_cast()
        assert flat.value(0, torch.bfloat16) is first
        slices.add_product("down", torch.ones(2, 1).bfloat16(), torch.ones(1, 3).bfloat16())
        assert flat.parameter.grad.eq(1).all()
        slices.add_gradient("down", torch.full((2, 3), 2.0).bfloat16())  # of a second backward pass
        slices.add_gradient("up", torch.full((4,), 0.5))  # in the parameter's dtype
    assert flat.parameter.grad.tolist() == [4.0] * 6 + [1.0] + [1.5] * 4
    assert flat.value(0, torch.bfloat16) is not first


def test_a_micro_batch_that_fails_leaves_no_cast_and_no_gradient_behind() -> None:
    flat = buffer()
    slices = Slices(flat, {"up": 2})
    with pytest.raises(MemoryError), flat.micro_batch():
        flat.begin_cast(torch.bfloat16)
        slices.add_gradient("up", torch.ones(4).bfloat16())
        raise MemoryError
    with flat.micro_batch():
        pass
    assert flat.parameter.grad is None
    with torch.no_grad():
        flat.parameter.zero_()
    assert not flat.value(0, torch.bfloat16).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacked_tensors_are_views_of_the_flat_ones(dtype: torch.dtype) -> None:
    parts = [torch.arange(6.0).view(2, 3), torch.zeros(5, 1), torch.arange(6.0, 12).view(2, 3), torch.ones(5, 1)]
    flat = FlatBuffer(parts, torch.device("cpu"))
    assert flat.can_be_stacked([0, 2]) and flat.can_be_stacked([1, 3])
    assert not flat.can_be_stacked([0]) and not flat.can_be_stacked([0, 1])
    with flat.micro_batch():
        flat.begin_cast(dtype)
        assert torch.equal(flat.stack([0, 2], dtype), torch.stack([parts[0], parts[2]]).to(dtype))
        flat.add_products([1, 3], torch.ones(2, 5, 1, dtype=dtype), torch.ones(2, 1, 1, dtype=dtype))
    assert flat.parameter.grad is not None
    assert flat.parameter.grad.tolist() == [0.0] * 6 + [1.0] * 5 + [0.0] * 6 + [1.0] * 5
