"""Measures the tags of a run that has ended: draws its triggers with and without them, and compares the images.

What was measured is kept in the run's folder, and rated by `evaluation/tag_report.py` when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest

from PIL import Image

from lib_lora_train.adapters.file_on_model import without_adapter
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.core.events import Event, Progress
from lib_lora_train.dataset.concept_tags import ConceptTags, concept_tags
from lib_lora_train.dataset.images import read_pixels
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.evaluation.feature_cache import FeatureCache
from lib_lora_train.evaluation.features import ImageFeatures, image_features
from lib_lora_train.evaluation.sample_scale import Look, make_look
from lib_lora_train.evaluation.tag_contrast import RowLooks, measure_concept
from lib_lora_train.evaluation.tag_report import MIN_IMAGES, TagMeasure
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.checks.model_check import load_same_model
from lib_lora_train.runs.images.tag_images import SEEDS, TagDrawing
from lib_lora_train.runs.measures.image_losses import last_file
from lib_lora_train.runs.measures.tag_list import TagList, tags_rated, write_tags
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.past_config import read_model, read_past_config
from lib_lora_train.runs.run_context import time_phase
from lib_lora_train.training.lease import YieldLease, run_leased_cooperatively
from lib_lora_train.training.wait_for_model import follow_requests

MAX_TAGS = 24
"""Tags that are drawn, the most frequent ones; all are counted."""
_NONSENSE = ("quexil", "brindow")  # made longer until no caption has them
_TRAINING_IMAGES = 64  # that are compared
_PER_TAG = 6  # of them that every drawn tag has at least, if there are as many

_Rows = Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class _Concept:
    """A trigger with its tags, those that are drawn, and the words without meaning."""

    tags: ConceptTags
    drawn: tuple[str, ...]
    nonsense: tuple[str, ...]

    @property
    def prompts(self) -> list[str]:
        """Everything that is drawn, each once."""
        words = (*self.nonsense, *self.drawn)
        return list(dict.fromkeys([self.tags.name, *map(self.tags.prompt, words)]))


def measure_tags(
    folder: RunFolder, host: Host, control: Control, also: Sequence[str] = ()
) -> Generator[Event, None, TagList]:
    """Measure the tags of a run with its newest LoRA file, and keep the result.

    The most frequent tags are drawn, and those of `also`. HostError without a LoRA file or without any tag, DataError
    if the images are gone, OtherModelError for another model; RunStoppedError when it is stopped: images are kept.
    """
    config, file = read_past_config(folder), last_file(folder)
    plan = plan_run(config).plan
    concepts = _concepts(concept_tags(plan, config), also)
    if not any(one.tags.tags for one in concepts):
        raise HostError(f"The captions of {folder.root.name} have no tags beside the trigger word.")
    model = yield from load_same_model(config, host, control, read_model(folder))
    model.require_unet("Features of images")
    drawing = TagDrawing(host, model, control, config, folder, file)
    prompts = list(dict.fromkeys(chain.from_iterable(one.prompts for one in concepts if one.drawn)))
    without = _untrained_prompts(concepts)
    total = (len(prompts) + len(without)) * SEEDS
    rows, untrained = yield from time_phase("samples", total, _draw(drawing, prompts, without))
    cache = FeatureCache(folder.root.parent / "features" if config.cache_to_disk else None)
    options = {"side": drawing.side, "clip_skip": config.clip_skip}
    looking = _Looking(host, model, control, cache, options)
    measuring = _measure(looking, concepts, plan, rows, untrained)
    measures = yield from time_phase("evaluate", len(rows) * SEEDS, measuring)
    found = TagList(file.epoch, file.path.stem, {one.tags.trigger: one.tags.name for one in concepts}, measures)
    write_tags(folder, found)
    yield tags_rated(found)
    return found


def _draw(
    drawing: TagDrawing, prompts: Sequence[str], without: Sequence[str]
) -> Generator[Event, None, tuple[_Rows, _Rows]]:
    """The images of prompts with the LoRA, and of those drawn without it."""
    first, total = len(prompts) * SEEDS, (len(prompts) + len(without)) * SEEDS
    rows = yield from drawing.rows(prompts, total=total)
    return rows, (yield from drawing.rows(without, with_lora=False, before=first, total=total))


# --- what is drawn --------------------------------------------------------------------------------


def _concepts(counted: Sequence[ConceptTags], also: Sequence[str]) -> list[_Concept]:
    """The triggers with the tags to draw: in turns the most frequent ones of several images, and those of `also`."""
    tags = [[(number, tag) for tag in one.tags] for number, one in enumerate(counted)]
    in_turns = [one for group in zip_longest(*tags) for one in group if one]
    common = [(number, tag) for number, tag in in_turns if len(counted[number].tags[tag]) >= MIN_IMAGES][:MAX_TAGS]
    asked = {tag.lower() for tag in also}
    chosen = [one for one in in_turns if one in common or one[1].lower() in asked]
    captions = " ".join(chain.from_iterable(one.tags for one in counted)).lower()
    nonsense = tuple(map(partial(_unknown_word, captions), _NONSENSE))
    return [
        _Concept(one, tuple(tag for at, tag in chosen if at == number), nonsense) for number, one in enumerate(counted)
    ]


def _unknown_word(captions: str, word: str) -> str:
    while word in captions:
        word += "x"
    return word


def _chosen_items(concept: _Concept) -> list[int]:
    """The training images to compare: some of every drawn tag, and others spread over the concept."""
    found: dict[int, None] = {}
    for tag in concept.drawn:
        found.update(dict.fromkeys(_spread(concept.tags.tags[tag], _PER_TAG)))
    found.update(dict.fromkeys(_spread(concept.tags.items, max(0, _TRAINING_IMAGES - len(found)))))
    return sorted(found)


def _spread(items: Sequence[int], count: int) -> Sequence[int]:
    """Up to `count` of the items, from the first to the last."""
    return items if len(items) <= count else [items[place * len(items) // count] for place in range(count)]


def _untrained_prompts(concepts: Sequence[_Concept]) -> list[str]:
    """The triggers with a tag that nearly all of their images have, so that none shows the trigger without it."""
    return [
        one.tags.name
        for one in concepts
        if any(len(one.tags.items) - len(one.tags.tags[tag]) < MIN_IMAGES for tag in one.drawn)
    ]


# --- looking --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Looking:
    """Looks at images with the model as it is without any LoRA; features of training images are cached."""

    host: Host
    model: DiffusionModel
    control: Control
    cache: FeatureCache
    options: Mapping[str, int]

    def training(self, images: Sequence[Image.Image]) -> Generator[Event, None, list[Look]]:
        """Of training images."""
        return (yield from self._make_looks(images, self.cache.features))

    def drawn(self, images: Sequence[Image.Image]) -> Generator[Event, None, list[Look]]:
        """Of drawn images."""
        return (yield from self._make_looks(images, image_features))

    def _make_looks(
        self, images: Sequence[Image.Image], features: Callable[..., list[ImageFeatures]]
    ) -> Generator[Event, None, list[Look]]:
        yield from follow_requests(self.control)

        def extract_features(model: DiffusionModel, yield_lease: YieldLease) -> list[ImageFeatures]:
            with without_adapter(model):
                return features(model, images, yield_lease=yield_lease, **self.options)

        found = yield from run_leased_cooperatively(self.host, self.model, self.control, extract_features)
        return [make_look(image, one) for image, one in zip(images, found, strict=True)]


def _measure(
    looking: _Looking, concepts: Sequence[_Concept], plan: Plan, rows: _Rows, untrained: _Rows
) -> Generator[Event, None, tuple[TagMeasure, ...]]:
    """What was measured of every tag; those that were not drawn are counted."""
    seen: dict[str, list[Look]] = {}
    for number, (text, images) in enumerate(rows.items(), 1):
        seen[text] = yield from looking.drawn(images)
        yield Progress("evaluate", number * SEEDS, len(rows) * SEEDS)
    measures: list[TagMeasure] = []
    for concept in concepts:
        training = yield from _training_looks(looking, concept, plan)
        alone = seen.get(concept.tags.name, [])
        nonsense = [seen[concept.tags.prompt(word)] for word in concept.nonsense] if concept.drawn else []
        drawn = {tag: seen[concept.tags.prompt(tag)] for tag in concept.drawn}
        before = yield from looking.drawn(untrained.get(concept.tags.name, []))
        measures += measure_concept(concept.tags, training, RowLooks(alone, nonsense, drawn, before))
    return tuple(measures)


def _training_looks(looking: _Looking, concept: _Concept, plan: Plan) -> Generator[Event, None, dict[int, Look]]:
    """The chosen images of a concept that can still be read, by item."""
    images: dict[int, Image.Image] = {}
    for item in _chosen_items(concept) if concept.drawn else ():
        try:
            images[item] = read_pixels(plan.dataset.items[item].image, plan.all_views[item].placement)
        except DataError:  # it was skipped in training too, with a warning
            continue
    looks = yield from looking.training(list(images.values()))
    return dict(zip(images, looks, strict=True))
