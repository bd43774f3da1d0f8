"""A whole run of textual inversion: its files, card and samples, what a webui is asked for, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from lib_lora_train.cli.main import main
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, DataError, HostError, ResumeRefusedError
from lib_lora_train.core.events import LoraWritten, StepDone
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.placeholder_words import placeholder_word
from lib_lora_train.runs import trainer
from lib_lora_train.runs.images.epoch_grid import GridChoice, find_grid_task, read_sheets
from lib_lora_train.runs.images.grid_generator import GridGenerator
from lib_lora_train.runs.images.webui_images import generation_request
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import new_run_folder
from lib_lora_train.runs.records.history import newest_lora
from lib_lora_train.runs.records.past_runs import xyz_text
from lib_lora_train.runs.resuming import refuse_other_run
from lib_lora_train.runs.runner import Runner
from lib_lora_train.training.training_state import load_state
from lib_lora_train.web.image_losses import ImageLossSession
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.tags import TagReportSession
from tests.stand_ins.run_parts import RunSetup, ending, only, small_run_setup

VALUES: dict[str, Any] = {
    "method": "textual_inversion",
    "embedding_vectors": 2,
    "embedding_init_text": "fox",
    "learning_rate": 0.2,
    "lr_schedule": "constant",
    "sample_prompts": ("zorp on grass --s 2 --l 2 --d 5", "fox --s 2 --l 2"),
    "sample_sampler": "Euler",
}


@pytest.fixture(scope="module")
def setup(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSetup:
    """A run of two epochs on the embedded model, with its log."""
    host = StandaloneHost(None, None, Path("unused"), "cpu")
    setup = small_run_setup(host, demo_dir, tmp_path_factory.mktemp("run"))
    setup = setup._replace(config=setup.config.replace(**VALUES))
    events = setup.run()
    setup.folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")
    assert ending(events) == "finished"
    return setup


def embeddings(setup: RunSetup) -> list[Path]:
    return sorted(setup.host.embedding_dir.glob("*.safetensors"))


def parameters(image: Path) -> str:
    with Image.open(image) as opened:
        return str(opened.info["parameters"])


def test_every_epoch_is_a_file_in_the_folder_of_embeddings(setup: RunSetup) -> None:
    assert [path.name for path in embeddings(setup)] == ["test-000001.safetensors", "test-000002.safetensors"]
    assert not list(setup.host.lora_dir.glob("*.safetensors"))
    with safe_open(str(embeddings(setup)[-1]), framework="pt") as file:
        assert list(file.keys()) == ["emb_params"]
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == "zorp" and metadata["ss_network_module"] == "None"


def test_card_has_the_files_name_and_its_image_is_no_embedding_for_a1111(setup: RunSetup) -> None:
    """A1111 looks for an embedding in every other image of that folder."""
    last = embeddings(setup)[-1]
    assert json.loads(last.with_suffix(".json").read_text())["activation text"] == "test-000002"
    assert last.with_suffix(".preview.png").is_file() and not last.with_suffix(".png").exists()


def test_samples_are_drawn_with_the_word_and_say_which_file_repeats_them(setup: RunSetup) -> None:
    first, last = setup.folder.sample(0, 1), setup.folder.sample(2, 1)
    assert parameters(first).startswith("zorp on grass") and parameters(last).startswith("test-000002 on grass")
    with Image.open(first) as before, Image.open(last) as after:
        assert before.tobytes() != after.tobytes()
    with Image.open(setup.folder.sample(0, 2)) as before, Image.open(setup.folder.sample(2, 2)) as after:
        assert before.tobytes() == after.tobytes(), "a prompt without the word cannot change"


def test_grid_of_the_epochs_draws_the_files_by_their_names(setup: RunSetup) -> None:
    """The files hold fp16 vectors, and samples share a batch: a difference of 3 in 255 is allowed."""
    grids = GridGenerator(setup.host, setup.folder.root.parent)
    grids.start(GridChoice(strengths=(1.0, 0.5)))
    grids.wait(120)
    status = grids.status()
    assert (status["state"], status["done"]) == ("done", 10), status["message"]
    sheet = next(one for one in read_sheets(setup.folder) if one.id == status["sheet"])
    cells = {row.label: setup.folder.epoch_grids / row.cells[0] for row in sheet.rows}
    assert parameters(cells["epoch 2 · ×0.5"]).startswith("(test-000002:0.5) on grass")
    with Image.open(cells["epoch 2 · ×1"]) as cell, Image.open(setup.folder.sample(2, 1)) as sample:
        pairs = zip(cell.convert("RGB").tobytes(), sample.convert("RGB").tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 3


def test_webui_is_asked_for_the_name_in_the_prompt_and_no_lora(setup: RunSetup) -> None:
    task = find_grid_task(setup.folder.root.parent, GridChoice())
    request = task.request(task.rows[-1], task.prompts[0])
    assert (request.prompt, request.lora) == ("test-000002 on grass", "")
    assert request.embedding == embeddings(setup)[-1]
    (plain, *_) = sample_prompts(setup.config)
    assert generation_request(plain, lora=None, clip_skip=1, word="zorp").prompt == plain.prompt


def test_xyz_plot_replaces_the_name_in_the_prompt(setup: RunSetup) -> None:
    text = xyz_text(setup.folder.root.parent, setup.folder.root.name)
    assert text.startswith("test-000001 on grass") and "test-000001,test-000002" in text and "<lora" not in text


def test_host_has_the_model_as_it_was(setup: RunSetup) -> None:
    model = setup.host.load_model(setup.config)
    assert placeholder_word(model) is None


def test_stopped_run_resumes_and_ends_with_the_same_vectors(setup: RunSetup, tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "outputs", "again")
    config = setup.config.replace(sample_every_n_epochs=0, sample_prompts=(), make_grid=False, output_name="again")
    control, seen = Control(), 0
    for event in trainer.run_training(config, setup.host, folder=folder, control=control):
        seen += isinstance(event, StepDone)
        if seen == 4:
            control.stop()
    state = max(folder.saved_states().items())[1]
    control = Control()
    events = list(trainer.run_training(config, setup.host, folder=folder, control=control, state=state))
    assert ending(events) == "finished"
    assert only(events, LoraWritten)[-1].path == str(setup.host.embedding_dir / "again-000002.safetensors")
    assert torch.equal(vectors(Path(only(events, LoraWritten)[-1].path)), vectors(embeddings(setup)[-1]))


def vectors(path: Path) -> Tensor:
    with safe_open(str(path), framework="pt") as file:
        found: Tensor = file.get_tensor("emb_params")
    return found


@pytest.mark.parametrize("command", ["images", "tags"])
def test_what_needs_a_lora_file_is_refused_at_once(
    setup: RunSetup, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(setup.folder.root), "--measure", "--cpu"]) > 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{setup.folder.root.name} has trained an embedding" in lines[0]


@pytest.mark.parametrize("kind", ["images", "tags"])
def test_page_does_not_offer_what_needs_a_lora_file(setup: RunSetup, kind: str) -> None:
    runner, folder_of = Runner(setup.host, setup.folder.root.parent), lambda _values: setup.folder
    session: ImageLossSession | TagReportSession
    if kind == "images":
        session = ImageLossSession(runner, ImageTokens(), folder_of, lambda _change: None)
    else:
        session = TagReportSession(runner, ImageTokens(), folder_of)
    assert session.show({})["can_measure"] is False
    with pytest.raises(HostError, match="has trained an embedding"):
        session.start({})
    assert session.status({})["state"] == "idle"


def test_resuming_with_other_settings_advises_nothing_that_is_refused(setup: RunSetup) -> None:
    """The file of an embedding cannot be continued."""
    state = load_state(max(setup.folder.saved_states().items())[1])
    config = setup.config.replace(embedding_vectors=4)
    with pytest.raises(ResumeRefusedError) as error:
        refuse_other_run(state, config, plan_run(config).plan, setup.folder)
    assert "embedding_vectors was 2" in str(error.value) and "continue_from" not in str(error.value)
    assert str(error.value).endswith("Set it back, or start a new run.")
    assert newest_lora(setup.folder) is None


def test_run_whose_captions_have_the_word_nowhere_ends_before_training(setup: RunSetup, tmp_path: Path) -> None:
    """BREAK is no word in weighted captions, but a new chunk."""
    concepts = tuple(replace(concept, trigger="BREAK") for concept in setup.config.concepts)
    config = setup.config.replace(concepts=concepts, weighted_captions=True, sample_prompts=("BREAK",))
    events = []
    with pytest.raises(DataError, match="“BREAK” in none of the captions"):
        for event in trainer.run_training(
            config, setup.host, folder=new_run_folder(tmp_path / "outputs", "no"), control=Control()
        ):
            events.append(event)
    assert not only(events, StepDone) and not (tmp_path / "latents").exists()
    assert placeholder_word(setup.host.load_model(config)) is None


def test_run_without_a_trigger_does_not_start(setup: RunSetup, tmp_path: Path) -> None:
    concepts = tuple(concept.__class__(folder=concept.folder) for concept in setup.config.concepts)
    config = setup.config.replace(concepts=concepts)
    with pytest.raises(ConfigError, match="trains the embedding of this word"):
        list(
            trainer.run_training(
                config, setup.host, folder=new_run_folder(tmp_path / "outputs", "no"), control=Control()
            )
        )
