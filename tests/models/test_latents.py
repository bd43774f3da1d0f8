"""Images to posteriors and back; the cache is keyed by content and never stale."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError, OutputError, TrainingError
from lib_lora_train.core.events import Event, Noted, Progress
from lib_lora_train.dataset.images import read_pixels
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import scan_dataset
from lib_lora_train.models import latent_cache
from lib_lora_train.models import tensor_cache as cache_file
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache, Posterior, load_posterior, vae_hash, write_posterior
from lib_lora_train.models.latent_format import LatentFormat
from lib_lora_train.models.latents import (
    decode_latents,
    encode_dataset,
    float32_copy,
    pixels_to_tensor,
    tensor_to_pixels,
)
from tests.stand_ins.half_precision import needs_fp16
from tests.stand_ins.tiny_models import tiny_model

CONFIG = TrainConfig(resolution=64, min_bucket=32, max_bucket=128, bucket_step=16)


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return tiny_model("sd1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images: three squares, two of them equal, and two wide ones."""
    images = tmp_path / "images"
    images.mkdir()
    for name, size, seed in (("a", (64, 64), 1), ("b", (96, 48), 2), ("c", (64, 64), 1), ("d", (64, 64), 3)):
        _noise_image(size, seed).save(images / f"{name}.png")
    _noise_image((96, 48), 4).save(images / "e.png")
    return images


def _noise_image(size: tuple[int, int], seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.frombytes("RGB", size, bytes(pixels.numpy()))


def _plan(folder: Path, config: TrainConfig = CONFIG) -> Plan:
    return make_plan(scan_dataset([Concept(folder=str(folder))], ".txt"), config)


def _run(generator: Generator[Event, None, LatentCache]) -> tuple[LatentCache, list[Event]]:
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as stop:
            store: LatentCache = stop.value
            return store, events


def _encoded(events: list[Event]) -> int:
    """How many images the VAE encoded."""
    return max(event.total for event in events if isinstance(event, Progress))


def test_each_item_gets_its_own_posterior(model: DiffusionModel, folder: Path) -> None:
    plan = _plan(folder)
    store, events = _run(encode_dataset(model, plan, None))
    assert len(store) == 5 and store.missing == frozenset()
    for index, item in enumerate(plan.dataset.items):
        with Image.open(item.image.path) as image:
            placement = plan.placements[index]
            pixels = pixels_to_tensor(image.resize((placement.width, placement.height)))[None]
        with torch.no_grad():
            expected = model.vae.encode(pixels).latent_dist
        if placement.width == item.image.width and placement.height == item.image.height:
            # batched and single convolutions add in another order
            torch.testing.assert_close(store[index].mean, expected.mean[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(store[index].std, expected.std[0], rtol=1e-4, atol=1e-5)
        assert store[index].mean.shape == (4, placement.height // 8, placement.width // 8)
    assert events[0] == Progress("latents", 0, 4) and events[-1] == Progress("latents", 4, 4)  # the twin only once


def test_the_second_run_encodes_nothing(model: DiffusionModel, folder: Path, tmp_path: Path) -> None:
    plan, cache = _plan(folder), tmp_path / "cache"
    first, events = _run(encode_dataset(model, plan, cache))
    assert _encoded(events) == 4
    again, events = _run(encode_dataset(model, plan, cache))
    assert _encoded(events) == 0
    assert all(torch.equal(first[i].mean, again[i].mean) and torch.equal(first[i].std, again[i].std) for i in range(5))
    assert not list(cache.rglob("*.tmp"))


def test_a_changed_image_size_or_vae_is_encoded_again(model: DiffusionModel, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _run(encode_dataset(model, _plan(folder), cache))
    _noise_image((64, 64), 99).save(folder / "d.png")
    assert _encoded(_run(encode_dataset(model, _plan(folder), cache))[1]) == 1
    assert _encoded(_run(encode_dataset(model, _plan(folder, CONFIG.replace(resolution=96)), cache))[1]) == 4
    other = tiny_model("sd1", seed=1)
    assert _encoded(_run(encode_dataset(other, _plan(folder), cache))[1]) == 4
    assert _encoded(_run(encode_dataset(model, _plan(folder), cache))[1]) == 0


def test_a_renamed_image_is_read_from_the_cache(model: DiffusionModel, folder: Path, tmp_path: Path) -> None:
    _run(encode_dataset(model, _plan(folder), tmp_path / "cache"))
    (folder / "d.png").rename(folder / "z.png")
    assert _encoded(_run(encode_dataset(model, _plan(folder), tmp_path / "cache"))[1]) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "nan", "foreign"])
def test_a_damaged_cache_file_is_replaced(model: DiffusionModel, folder: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    whole, _ = _run(encode_dataset(model, _plan(folder), cache))
    path = sorted(cache.rglob("*.safetensors"))[0]
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"")
    else:
        bad = {"mean": torch.full((4, 8, 8), float("nan")), "std": torch.zeros(4, 8, 8)}
        save_file(bad if damage == "nan" else {"other": torch.zeros(1)}, path)
    store, events = _run(encode_dataset(model, _plan(folder), cache))
    assert _encoded(events) == 1
    assert all(torch.isfinite(store[i].mean).all() for i in range(5)) and len(store) == len(whole)
    assert load_posterior(path) is not None


def test_an_image_that_became_unreadable_is_reported_and_skipped(model: DiffusionModel, folder: Path) -> None:
    plan = _plan(folder)
    broken = next(index for index, item in enumerate(plan.dataset.items) if item.image.path.name == "d.png")
    (folder / "d.png").write_bytes(b"not an image any more")
    store, events = _run(encode_dataset(model, plan, None))
    (note,) = (event for event in events if isinstance(event, Noted))
    assert note.where.endswith("d.png")
    assert store.missing == {broken} and broken not in store and len(store) == 4
    with pytest.raises(KeyError):
        store[broken]


def test_no_image_at_all_is_an_error(model: DiffusionModel, folder: Path) -> None:
    plan = _plan(folder)
    for path in folder.iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match="None of the images"):
        _run(encode_dataset(model, plan, None))


@needs_fp16
def test_nan_in_half_precision_is_retried_in_float32(model: DiffusionModel, folder: Path) -> None:
    """Weights scaled so that fp16 overflows, as in SDXL's VAE."""
    half = _overflowing(model, torch.float16)
    store, events = _run(encode_dataset(half, _plan(folder), None))
    assert not [event for event in events if isinstance(event, Noted)]
    assert all(torch.isfinite(store[index].mean).all() for index in range(5))
    assert {parameter.dtype for parameter in half.vae.parameters()} == {torch.float16}  # the given one is untouched


@needs_fp16
def test_decoding_retries_nan_in_float32_too(model: DiffusionModel) -> None:
    half = _overflowing(model, torch.float16)
    latents = torch.ones(1, 4, 8, 8) * 9
    with torch.no_grad():
        assert not torch.isfinite(half.vae.decode(latents.half() / half.spec.scale_factor).sample).all()
    exact = dataclasses.replace(half, vae=float32_copy(half.vae))
    assert decode_latents(half, latents)[0].tobytes() == decode_latents(exact, latents)[0].tobytes()


def test_nan_in_float32_skips_the_image(model: DiffusionModel, folder: Path) -> None:
    broken = _overflowing(model, torch.float32, by=1e38)
    with pytest.raises(DataError, match="None of the images"):
        _run(encode_dataset(broken, _plan(folder), None))


def _overflowing(model: DiffusionModel, dtype: torch.dtype, by: float = 1e6) -> DiffusionModel:
    """Large inner activations that the following norm brings back to range."""
    vae = float32_copy(model.vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(by)
        vae.decoder.conv_in.weight.mul_(by)
    if dtype == torch.float16:
        for convolution in (vae.encoder.conv_in, vae.decoder.conv_in):
            convolution.weight.clamp_(-6e4, 6e4)
    return dataclasses.replace(model, vae=vae.to(dtype))


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_file, "save_file", full)
    with pytest.raises(OutputError, match=r"No space left.*cache_to_disk"):
        write_posterior(tmp_path / "cache" / "ab" / "abc.safetensors", Posterior(torch.zeros(1), torch.zeros(1)))


def test_error_names_a_cache_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="latent cache cannot be written"):
        write_posterior(tmp_path / "cache" / "ab" / "abc.safetensors", Posterior(torch.zeros(1), torch.zeros(1)))


def test_beyond_the_memory_limit_posteriors_are_read_from_disk(
    model: DiffusionModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = _run(encode_dataset(model, _plan(folder), None))
    monkeypatch.setattr(latent_cache, "_MEMORY_LIMIT", 0)
    store, _ = _run(encode_dataset(model, _plan(folder), tmp_path / "cache"))
    assert all(torch.equal(store[index].mean, whole[index].mean) for index in range(5))
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(TrainingError, match="missing or damaged"):
        store[0]


def test_a_latent_sample_is_the_scaled_mean_plus_noise() -> None:
    posterior = Posterior(torch.tensor([1.0]), torch.tensor([0.5]))
    assert posterior.sample(torch.tensor([2.0]), LatentFormat(4, 0.25)).item() == (1.0 + 0.5 * 2.0) * 0.25


def test_decoding_undoes_the_scale_and_gives_rgb(model: DiffusionModel) -> None:
    latents = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    images = decode_latents(model, latents * model.spec.scale_factor)
    assert [(image.mode, image.size) for image in images] == [("RGB", (48, 64))] * 2
    with torch.no_grad():
        expected = tensor_to_pixels(model.vae.decode(latents[1:]).sample[0])
    # the scale's rounding may move a value across the border between two of 256 levels
    assert (pixels_to_tensor(images[1]) - pixels_to_tensor(expected)).abs().max() <= 2 / 127.5


def test_pixels_survive_the_round_trip() -> None:
    image = _noise_image((24, 16), 7)
    tensor = pixels_to_tensor(image)
    assert tensor.shape == (3, 16, 24) and tensor.min() >= -1 and tensor.max() <= 1
    assert tensor_to_pixels(tensor).tobytes() == image.tobytes()
    assert tensor_to_pixels(torch.full((3, 1, 1), float("nan"))).getpixel((0, 0)) == (0, 0, 0)


def test_vae_hash_depends_only_on_weights(model: DiffusionModel) -> None:
    assert vae_hash(model) == vae_hash(tiny_model("sd1"))
    assert vae_hash(model) != vae_hash(tiny_model("sd1", seed=1))


# --- views and masks ------------------------------------------------------------------------------


def _concept_plan(folder: Path, **values: Any) -> Plan:
    concept = dataclasses.replace(Concept(folder=str(folder)), **values)
    return make_plan(scan_dataset([concept], ".txt"), CONFIG)


def test_each_view_is_encoded_with_its_own_crop_and_augmentation(
    model: DiffusionModel, folder: Path, tmp_path: Path
) -> None:
    plan = _concept_plan(folder, flip=True, colour_jitter=0.1, random_crop=True, augment_variants=2)
    store, _ = _run(encode_dataset(model, plan, tmp_path / "cache"))
    assert len(plan.all_views) == 5 * 4 and len(store) == 5 * 4
    for number in (0, 7, 19):
        view = plan.all_views[number]
        image = read_pixels(plan.dataset.items[view.item].image, view.placement, view.transform)
        with torch.no_grad():
            expected = model.vae.encode(pixels_to_tensor(image)[None]).latent_dist.mean[0]
        # batched and single convolutions add in another order
        torch.testing.assert_close(store[number].mean, expected, rtol=1e-4, atol=1e-5)


def test_only_views_not_in_the_cache_are_encoded(model: DiffusionModel, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _run(encode_dataset(model, _concept_plan(folder), cache))
    assert _encoded(_run(encode_dataset(model, _concept_plan(folder, flip=True), cache))[1]) == 4
    assert _encoded(_run(encode_dataset(model, _concept_plan(folder, flip=True), cache))[1]) == 0
    jitter = _concept_plan(folder, colour_jitter=0.1, augment_variants=3)
    assert _encoded(_run(encode_dataset(model, jitter, cache))[1]) == 2 * 4


def _with_mask(folder: Path, name: str = "a") -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 20, 64))
    mask.save(folder / f"{name}-mask.png")


def test_a_mask_is_averaged_per_latent_cell_and_cached(model: DiffusionModel, folder: Path, tmp_path: Path) -> None:
    _with_mask(folder)
    plan = _concept_plan(folder, use_masks=True, flip=True)
    for _ in range(2):  # encoded, then from the cache
        store, _events = _run(encode_dataset(model, plan, tmp_path / "cache"))
        plain, flipped = (store[number].mask for number in plan.view_numbers[0])
        assert plain is not None and flipped is not None
        # 20 of 64 px: two whole cells and half of the third
        assert torch.equal(plain, torch.tensor([[1, 1, 0.5, 0, 0, 0, 0, 0]]).expand(8, 8))
        assert torch.equal(flipped, plain.flip(1))
        assert store[1].mask is None


def test_a_changed_mask_invalidates_the_cache(model: DiffusionModel, folder: Path, tmp_path: Path) -> None:
    _with_mask(folder)
    _run(encode_dataset(model, _concept_plan(folder, use_masks=True), tmp_path / "cache"))
    Image.new("L", (64, 64), 255).save(folder / "a-mask.png")
    store, events = _run(encode_dataset(model, _concept_plan(folder, use_masks=True), tmp_path / "cache"))
    assert _encoded(events) == 1
    mask = store[0].mask
    assert mask is not None and torch.equal(mask, torch.ones(8, 8))
