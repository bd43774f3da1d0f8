"""Textual inversion trains vectors and nothing else, and writes files that other programs read as they were trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import AdapterError, DataError
from lib_lora_train.core.events import StepDone
from lib_lora_train.dataset.plan import epoch_steps
from lib_lora_train.methods.registry import attach
from lib_lora_train.methods.textual_inversion import MedianNorm, embedding_on_model, require_word
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.placeholder_words import initial_vectors, placeholder_word
from lib_lora_train.models.prompts import encode_prompts
from lib_lora_train.training.loop import accumulate_gradients
from lib_lora_train.training.step import draw_batch
from lib_lora_train.training.text_conditions import text_conditions
from lib_lora_train.training.training_run import Training, start_training
from lib_lora_train.training.training_state import TrainState, load_state, write_state
from tests.stand_ins.tiny_models import alphas_of
from tests.stand_ins.training_parts import losses, random_latents, run_to_end, small_config, small_plan
from tests.stand_ins.training_parts import shared_model as model


def config_for(**values: Any) -> TrainConfig:
    concepts = (Concept(folder="zok", trigger="zok", class_word="cat"),)
    chosen = {"method": "textual_inversion", "embedding_vectors": 3, "learning_rate": 0.05, "concepts": concepts}
    return small_config(**{**chosen, **values})


@contextmanager
def training_on(
    architecture: Architecture = "sd1", *, state: TrainState | None = None, **values: Any
) -> Iterator[Training]:
    """A run on the tiny model; the word is taken off again."""
    config = config_for(**values)
    plan, part = small_plan(config), attach(model(architecture), config)
    try:
        latents = random_latents(plan)
        yield start_training(model(architecture), part, plan=plan, latents=latents, config=config, state=state)
    finally:
        part.remove()


def fingerprint(found: DiffusionModel) -> list[Tensor]:
    return [p.detach().clone() for root in (found.unet, *found.text_encoders) for p in root.parameters()]


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_only_the_vectors_change(architecture: Architecture) -> None:
    before = fingerprint(model(architecture))
    with training_on(architecture) as training:
        names = ["embedding"] if architecture != "sdxl" else ["embedding_1", "embedding_2"]
        assert list(training.adapter.groups) == names
        start = training.adapter.state()
        events = run_to_end(training, model(architecture))
        assert all(not torch.equal(start[key], new) for key, new in training.adapter.state().items())
        rates = next(event.learning_rates for event in events if isinstance(event, StepDone))
        assert list(rates) == names
    assert placeholder_word(model(architecture)) is None
    assert all(map(torch.equal, fingerprint(model(architecture)), before))


def test_gradient_of_a_step_equals_that_of_plain_torch_in_float64() -> None:
    """Loss and gradient of one micro-batch, written out with diffusers and transformers. fp32 has 24 bits; the sums of
    a UNet's backward pass lose a few of them: 1e-3 of the largest component.
    """
    with training_on(batch_size=2, min_snr_gamma=0.0) as training:
        (micro_batch, *_) = epoch_steps(training.plan, training.config.seed, 1)[0]
        batch = draw_batch(micro_batch, training.plan, training.latents, config=training.config, model=model())
        assert batch is not None
        loss = accumulate_gradients(training, model(), step=[micro_batch], usable=len(batch.captions))
        (vectors,) = training.adapter.groups["embedding"]
        ours, start = vectors.grad, vectors.detach().clone()
    assert ours is not None
    expected_loss, expected = plain_gradient(batch, start)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)
    assert torch.allclose(ours.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0


def plain_gradient(batch: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the samples of ‖ε − ε_θ‖² per component, and its gradient at the vectors."""
    found = model()
    encoder, unet = copy.deepcopy(found.text_encoders[0]).double(), copy.deepcopy(found.unet).double()
    embeddings = compat.text_transformer(encoder).embeddings
    table = torch.cat([embeddings.token_embedding.weight.detach(), vectors.double()])
    embeddings.token_embedding = torch.nn.Embedding(table.shape[0], table.shape[1], _weight=table)
    spec, tokenizer = found.spec.text_encoders[0], found.tokenizers[0]
    zok = compat.token_ids_without_ends(tokenizer, ["zok"])[0]
    rows = []
    for caption in batch.captions:
        text = " ".join(map(str, compat.token_ids_without_ends(tokenizer, [caption])[0]))
        own = " ".join(str(len(table) - len(vectors) + n) for n in range(len(vectors)))
        ids = [int(part) for part in f" {text} ".replace(f" {' '.join(map(str, zok))} ", f" {own} ").split()]
        begin, end = spec.config["bos_token_id"], spec.config["eos_token_id"]
        rows.append([begin, *ids, end, *[spec.pad_token] * (75 - len(ids))])
    hidden = encoder(torch.tensor(rows), output_hidden_states=True).hidden_states[-1]
    hidden = compat.text_transformer(encoder).final_layer_norm(hidden)
    alphas = alphas_of(found)[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * batch.latents.double() + (1 - alphas).sqrt() * batch.noise.double()
    predicted = unet(noisy, batch.timesteps, encoder_hidden_states=hidden).sample
    loss = (predicted - batch.noise.double()).square().mean(dim=(1, 2, 3)).mean()
    loss.backward()
    return loss.detach(), embeddings.token_embedding.weight.grad[-len(vectors) :]


def test_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    with training_on(lr_schedule="constant") as training:
        expected = losses(run_to_end(training, model()))
        end = training.adapter.state()["emb_params"]
    with training_on(lr_schedule="constant", epochs=1) as training:
        first = losses(run_to_end(training, model()))
        write_state(tmp_path / "state.pt", training.state())
    with training_on(lr_schedule="constant", state=load_state(tmp_path / "state.pt")) as training:
        second = losses(run_to_end(training, model()))
        assert torch.equal(training.adapter.state()["emb_params"], end)
    assert first + second == expected


def test_norms_stay_at_the_median_of_the_models_words() -> None:
    """Multiplying by median / norm leaves a rounding error of a few units in fp32's last place."""
    with training_on(preserve_embedding_norm=True, epochs=1) as training:
        events = run_to_end(training, model())
        norms = training.adapter.state()["emb_params"].norm(dim=-1)
    table = compat.text_transformer(model().text_encoders[0]).embeddings.token_embedding.weight
    lengths = sorted(table.detach().double().square().sum(dim=-1).sqrt().tolist())
    median = lengths[(len(lengths) - 1) // 2]  # the lower one of the two in the middle, as torch's
    assert abs(median - sum(lengths) / len(lengths)) > 1e-4 * median, "the mean would do as well"
    assert norms.tolist() == pytest.approx([median] * 3, rel=1e-5)
    reported = [event.norms for event in events if isinstance(event, StepDone)]
    assert reported[-1] and reported[-1][1:] == pytest.approx((median, median), rel=1e-5)


def test_vectors_longer_than_the_median_are_counted_and_all_get_its_length() -> None:
    """3, 5 and 1 beside a median of 2; 10 beside one of 8: three were longer. Average and largest are of all four."""
    first, second = torch.tensor([[3.0, 0.0], [3.0, 4.0], [0.6, 0.8]]), torch.tensor([[6.0, 8.0, 0.0]])
    parameters = [torch.nn.Parameter(one.clone()) for one in (first, second)]
    longer, average, largest = MedianNorm(parameters, [2.0, 8.0]).apply().tolist()
    assert (longer, average, largest) == (3, pytest.approx((3 * 2 + 8) / 4), pytest.approx(8))
    expected = [first * torch.tensor([[2 / 3], [2 / 5], [2.0]]), second * 0.8]
    assert all(torch.allclose(one, two, rtol=1e-6) for one, two in zip(parameters, expected, strict=True))


def test_the_model_without_the_word_reads_its_usual_tokens() -> None:
    plain = encode_prompts(model(), ["a zok"], 1).hidden
    with training_on() as training:
        assert not torch.equal(encode_prompts(model(), ["a zok"], 1).hidden, plain)
        with training.adapter.enabled(False):
            assert torch.equal(encode_prompts(model(), ["a zok"], 1).hidden, plain)


@pytest.mark.parametrize("trained", [False, True])
def test_captions_are_read_anew_when_the_word_is_switched_or_has_moved(trained: bool) -> None:
    """With the cache of one measure, which looks at the model without the word first."""
    conditions = text_conditions(config_for(), trained=trained)
    with training_on() as training:

        def read(on: bool) -> Tensor:
            with torch.no_grad(), training.adapter.enabled(on):
                return conditions.encode(model(), ["a zok"]).hidden

        plain, first = read(False), read(True)
        with torch.no_grad():
            training.parameters[0].add_(0.5)
        moved = read(True)
        assert not torch.equal(plain, first) and not torch.equal(first, moved)
        assert torch.equal(read(False), plain)


@pytest.mark.parametrize("caption", ["zok", "Zok, red", "a (zok:1.2) at night", "red BREAK zok", "red,zok,"])
@pytest.mark.parametrize("weighted", [False, True])
def test_word_is_found_in_captions_as_training_reads_it(caption: str, weighted: bool) -> None:
    require_word(model(), config_for(weighted_captions=weighted), ["a cat", caption])


@pytest.mark.parametrize(
    ("word", "captions"), [("zok", ["a cat", "zoky"]), ("<zok>", ["<zok>, red"]), ("zok!", ["zok!, red"]), ("zok", [])]
)
def test_word_that_no_caption_has_is_refused(word: str, captions: list[str]) -> None:
    """The text encoder joins a symbol at the end with the comma after it."""
    config = config_for(concepts=(Concept(folder="zok", trigger=word),))
    with pytest.raises(DataError, match=f"“{word}” in none"):
        require_word(model(), config, captions)


def test_vectors_start_from_the_class_word_of_a_folder_to_learn_from() -> None:
    """Not from that of a regularisation folder, as validation says."""
    regularisation = Concept(folder="r", class_word="dog", is_regularisation=True)
    own = Concept(folder="zok", trigger="zok")
    for concepts, text in (
        ((regularisation, replace(own, class_word="cat")), "cat"),
        ((regularisation, own), "*"),
    ):
        part = attach(model(), config_for(concepts=concepts))
        part.remove()
        (expected,) = initial_vectors(model(), text, 3)
        assert torch.equal(part.state()["emb_params"], expected)


def test_second_part_on_the_same_model_is_refused() -> None:
    with training_on(), pytest.raises(AdapterError, match="already has"):
        attach(model(), config_for())


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "file_format", "keys"),
    [
        ("sd1", "webui", {"emb_params"}),
        ("sd2", "webui", {"emb_params"}),
        ("sd1", "diffusers", {"zok"}),
        ("sdxl", "webui", {"clip_l", "clip_g"}),
        ("sdxl", "diffusers", {"clip_l", "clip_g"}),
    ],
)
def test_file_has_the_names_that_webuis_know_and_loads_again(
    architecture: Architecture, file_format: str, keys: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    with training_on(architecture, embedding_format=file_format) as training:
        run_to_end(training, model(architecture))
        trained = training.adapter.state()
        write_adapter(path, trained, metadata={}, precision="fp32")
        widths = [encoder.config["hidden_size"] for encoder in model(architecture).spec.text_encoders]
    saved = load_file(path)
    assert set(saved) == keys
    assert sorted(tuple(one.shape) for one in saved.values()) == sorted((3, width) for width in widths)
    with training_on(architecture, embedding_format=file_format) as training:
        training.adapter.load_file(path)
        assert all(torch.equal(one, trained[key]) for key, one in training.adapter.state().items())


def test_file_on_the_model_encodes_as_it_was_trained(tmp_path: Path) -> None:
    path = tmp_path / "zok-000002.safetensors"
    with training_on() as training:
        run_to_end(training, model())
        write_adapter(path, training.adapter.state(), metadata={}, precision="fp32")
        expected = encode_prompts(model(), ["a (zok:1.2) at night"], 1).hidden
    with embedding_on_model(model(), path, "zok-000002"):
        found = encode_prompts(model(), ["a (zok-000002:1.2) at night"], 1).hidden
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"emb_params": torch.zeros(2, 5)}, "vectors of width 5"),
        ({"clip_l": torch.zeros(2, 5), "clip_g": torch.zeros(2, 7)}, "for SDXL"),
        ({"one": torch.zeros(2, 5), "two": torch.zeros(2, 5)}, "for SDXL|not an embedding"),
        ({"emb_params": torch.zeros(2, 5, 5)}, "not an embedding"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tensors: dict[str, Tensor], reason: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=reason), embedding_on_model(model(), tmp_path / "a.safetensors", "zok"):
        pass
    assert placeholder_word(model()) is None


@pytest.mark.parametrize("file_format", ["webui", "diffusers"])
def test_diffusers_encodes_prompts_with_the_file_as_it_was_trained(file_format: str, tmp_path: Path) -> None:
    """With its real loader. Both encode in fp32, and sums over other batch sizes may differ in the last bits: 1e-5."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    path, prompt = tmp_path / "a.safetensors", "a zok on grass, zok"
    with training_on(embedding_format=file_format) as training:
        run_to_end(training, model())
        write_adapter(path, training.adapter.state(), metadata={}, precision="fp32")
        ours = encode_prompts(model(), [prompt], 1, is_weighted=False).hidden
    parts = model()
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=copy.deepcopy(parts.text_encoders[0]),
        tokenizer=copy.deepcopy(parts.tokenizers[0]),
        unet=parts.unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(str(path), token=None if file_format == "diffusers" else "zok")
    theirs, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(ours.detach().abs().max()))
