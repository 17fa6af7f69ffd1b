from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2_factories import network_of, settings_and_state
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file, save, save_file
from tiny import tiny_model, write_image, write_tiny
from torch import Tensor, nn

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.checkpoints.storage import SCALE, Store, pack, unpack
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import CheckpointError
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.types import Float32

STORES: tuple[Store, ...] = ("float32", "float16", "int8")
each_store = pytest.mark.parametrize("store", STORES)
CPU = torch.device("cpu")

weights = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4),
    elements=st.one_of(st.just(0.0), st.floats(-100, 100, width=32)),
).map(torch.from_numpy)


def heads() -> dict[str, Tensor]:
    """A real network's tensors without its body, which holds nearly all bytes."""
    return {key: t for key, t in tiny_model().state_dict().items() if not key.startswith("backbone.body")}


def slow_int8(weight: Tensor, axis: int) -> Tensor:
    """What int8 makes of a weight, one number after another, in float64."""
    kept = weight.double().movedim(axis, 0).clone()
    for channel in kept:
        scale = max((abs(value) for value in channel.flatten().tolist()), default=0.0) / 127
        values = [round(value / scale) * scale if scale else 0.0 for value in channel.flatten().tolist()]
        channel.copy_(torch.tensor(values, dtype=torch.float64).reshape(channel.shape))
    return kept.movedim(0, axis)


def output_axes(model: nn.Module) -> dict[str, int]:
    """The axis of the output channels of each convolution and matrix, by its key."""
    transposed = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d)}
    return {key: int(key in transposed) for key, tensor in model.state_dict().items() if tensor.ndim >= 2}


def test_float32_keeps_every_value() -> None:
    state = heads() | {"bn1.num_batches_tracked": torch.tensor(3)}
    packed = unpack(pack(state, "float32", "f"))
    assert packed.keys() == state.keys()
    for key, tensor in state.items():
        assert packed[key].dtype == tensor.dtype
        torch.testing.assert_close(packed[key], tensor, rtol=0, atol=0)


@given(weights)
def test_float16_rounds_convolutions_and_matrices_alone(weight: Tensor) -> None:
    bias = torch.tensor([1 / 3, 1e-9])
    packed = unpack(pack({"w": weight, "b": bias}, "float16", "f"))
    assert packed["w"].dtype == (torch.float16 if weight.numel() else torch.float32)
    assert torch.equal(packed["w"].float(), weight.half().float())
    assert torch.equal(packed["b"], bias)


@given(weights)
def test_int8_is_the_slow_rounding_of_each_output_channel(weight: Tensor) -> None:
    packed = unpack(pack({"w": weight}, "int8", "f"))
    assert packed.keys() == {"w"}
    assert packed["w"].dtype == torch.float32
    assert packed["w"].shape == weight.shape
    largest = weight.abs().flatten(1).amax(1) if weight.numel() else torch.zeros(0)
    # A value halfway between two levels may go either way, by the last bit of its quotient.
    step = (largest / 127).reshape(-1, *[1] * (weight.ndim - 1)) if weight.numel() else 0.0
    expected = slow_int8(weight, 0).float()
    assert bool(((packed["w"] - weight).abs() <= step * 0.5001 + 1e-40).all())
    assert bool(((packed["w"] - expected).abs() <= step * 1.0001 + 1e-40).all())


def test_int8_of_seeded_weights_is_exactly_the_slow_one() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 4, 3, 3)
    for key, axis in (("conv.weight", 0), ("mask_head.deconv.weight", 1), ("a.conv5_mask.weight", 1)):
        found = unpack(pack({key: weight}, "int8", "f"))[key]
        torch.testing.assert_close(found.double(), slow_int8(weight, axis), rtol=1e-6, atol=1e-9)


@given(weights)
def test_storing_again_what_was_stored_changes_nothing(weight: Tensor) -> None:
    for store in STORES:
        once = pack({"w": weight}, store, "f")
        again = pack(unpack(once), store, "f")
        assert again.keys() == once.keys()
        assert torch.equal(again["w"], once["w"])


def test_a_channel_of_zeros_stays_zeros_and_the_levels_are_symmetric() -> None:
    packed = pack({"w": torch.tensor([[0.0, 0.0], [-3.0, 3.0], [1e-39, -1e-39]])}, "int8", "f")
    assert packed["w"].dtype == torch.int8
    assert packed["w"][:2].tolist() == [[0, 0], [-127, 127]]
    assert unpack(packed)["w"][:2].tolist() == [[0.0, 0.0], [-3.0, 3.0]]
    assert bool(unpack(packed)["w"].isfinite().all())


@pytest.mark.parametrize("family", ["torchvision", pytest.param("detectron2", marks=pytest.mark.slow)])
def test_scales_belong_to_the_output_channels_of_every_layer(family: str, tmp_path: Path) -> None:
    """Transposed convolutions have theirs in the second axis; both families' are known."""
    model = tiny_model() if family == "torchvision" else network_of(*settings_and_state(), tmp_path).model
    axes = output_axes(model)
    assert 1 in axes.values()
    packed = pack(model.state_dict(), "int8", "f")
    assert {key.removesuffix(SCALE) for key in packed if key.endswith(SCALE)} == axes.keys()
    for key, axis in axes.items():
        weight, scale = packed[key], packed[key + SCALE]
        assert scale.shape == tuple(size if dim == axis else 1 for dim, size in enumerate(weight.shape)), key


@each_store
def test_what_is_no_weight_is_kept_as_it_is(store: Store) -> None:
    state = {
        "steps": torch.tensor(7),
        "table": torch.arange(6).reshape(2, 3),
        "flags": torch.tensor([[True, False]]),
        "bias": torch.tensor([1e38, float("inf")]),
        "scalar": torch.tensor(0.1),
    }
    packed = unpack(pack(state, store, "f"))
    assert packed.keys() == state.keys()
    for key, tensor in state.items():
        assert packed[key].dtype == tensor.dtype
        assert torch.equal(packed[key], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_come_out_as_float32_or_stay_halves(dtype: torch.dtype) -> None:
    state = {"w": torch.ones(2, 3, dtype=dtype), "b": torch.ones(2, dtype=dtype)}
    kept = torch.float16 if dtype == torch.float16 else torch.float32
    dtypes = {store: [t.dtype for t in unpack(pack(state, store, "f")).values()] for store in STORES}
    assert dtypes == {
        "float32": [torch.float32, torch.float32],
        "float16": [kept, torch.float16],
        "int8": [kept, torch.float32],
    }


@each_store
def test_nothing_and_tensors_without_elements_are_stored(store: Store) -> None:
    assert unpack(pack({}, store, "f")) == {}
    shapes = {f"w{i}": shape for i, shape in enumerate([(0,), (0, 3), (3, 0), (2, 0, 3)])}
    packed = unpack(pack({key: torch.zeros(shape) for key, shape in shapes.items()}, store, "f"))
    assert {key: tuple(tensor.shape) for key, tensor in packed.items()} == shapes


@each_store
def test_views_and_shared_memory_can_be_written(store: Store, tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"turned": whole.T, "part": whole[1:, ::2], "same": whole, "again": whole, "row": whole[0]}
    before = whole.clone()
    packed = pack(state, store, "f")
    save_file(packed, tmp_path / "w.safetensors")
    assert unpack(load_file(tmp_path / "w.safetensors")).keys() == state.keys()
    packed["row"].zero_()
    assert torch.equal(whole, before)


@pytest.mark.parametrize(
    ("store", "value", "expected"),
    [
        ("float16", float("nan"), "expected finite values to store as float16, found others"),
        ("float16", float("-inf"), "expected finite values to store as float16, found others"),
        ("float16", 65520.0, "expected values within +-65504, found larger ones"),
        ("int8", float("inf"), "expected finite values to store as int8, found others"),
        ("int8", float("nan"), "expected finite values to store as int8, found others"),
    ],
)
def test_values_that_cannot_be_held_name_file_and_key(store: Store, value: float, expected: str) -> None:
    state = {"a.weight": torch.ones(2, 2), "b.weight": torch.tensor([[1.0, value]])}
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'fold0.pth: b.weight: {expected}')}$"):
        pack(state, store, "fold0.pth")


def test_float32_and_int8_hold_what_halves_cannot() -> None:
    large = torch.tensor([[1e30, -65520.0]])
    assert torch.equal(unpack(pack({"w": large}, "float32", "f"))["w"], large)
    assert unpack(pack({"w": large}, "int8", "f"))["w"][0, 0].item() == pytest.approx(1e30)


def test_the_same_weights_give_the_same_bytes_in_any_order() -> None:
    state = heads()
    turned = dict(reversed(state.items()))
    for store in STORES:
        assert save(pack(state, store, "f")) == save(pack(turned, store, "f"))


def test_bytes_halve_and_halve_again() -> None:
    # Wider than the other tests' network, as real ones are: in that one norms weigh a lot.
    state = {f"{i}.weight": torch.randn(64, 64, 3, 3) for i in range(3)} | {"norm.weight": torch.ones(64)}
    whole, half, quarter = (len(save(pack(state, store, "f"))) for store in STORES)
    assert half / whole == pytest.approx(0.5, abs=0.01)
    assert quarter / whole == pytest.approx(0.25, abs=0.01)


def test_a_stored_network_reads_as_a_checkpoint_and_predicts_alike(tmp_path: Path) -> None:
    """Of random weights, which magnify every difference."""
    manifest = write_tiny(tmp_path)
    state = read_checkpoint(tmp_path / "tiny.safetensors").state
    (file,) = find_images([write_image(tmp_path / "image.png")])

    def boxes() -> Float32:
        (found,) = predict(load_ensemble([manifest], CPU), [read_image(file)])
        return found.boxes

    whole = boxes()
    assert len(whole) > 10
    stores: list[tuple[Store, float]] = [("float16", 0.001), ("int8", 0.05)]
    for store, pixels in stores:
        save_file(pack(state, store, "f"), tmp_path / "tiny.safetensors")
        read = read_checkpoint(tmp_path / "tiny.safetensors").state
        assert {key: tensor.shape for key, tensor in read.items()} == {k: t.shape for k, t in state.items()}
        apart = np.abs(whole[:, None] - boxes()[None]).max(axis=2).min(axis=1)
        assert np.median(apart) <= pixels
