"""Small ready-made parts for the training tests: a plan without files, random latents, a host of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import LoraTrainError, ModelUnavailableError
from lib_lora_train.core.events import Event, StepDone
from lib_lora_train.dataset.images import ImageFile
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.training.loop import train
from lib_lora_train.training.training_run import Training, start_training
from lib_lora_train.training.training_state import TrainState
from tests.stand_ins.tiny_models import tiny_model

CAPTIONS = ("zok, red, small, on grass", "zok, blue, tall", "zok", "a zok, in the rain, at night, green")


def shared_model(architecture: Architecture = "sd1") -> DiffusionModel:
    """One tiny model per architecture for all tests, which take their adapters off again."""
    return _model(architecture)


@cache
def _model(architecture: Architecture) -> DiffusionModel:
    return tiny_model(architecture)


class OneModelHost:
    """A host with one model; `has_waiters` returns `wanted`, as if another thread were waiting."""

    def __init__(self, model: DiffusionModel, *, wanted: bool = False, away: int = 0) -> None:
        self.model = model
        self.wanted = wanted
        self.away = away  # number of leases that will still find another model
        self.turns = 0
        self.is_leased = False

    @contextmanager
    def lease(self, model: DiffusionModel | None = None) -> Iterator[DiffusionModel]:
        """The model; not re-entrant, like every host's."""
        assert not self.is_leased
        if self.away:
            self.away -= 1
            raise ModelUnavailableError("Another model is loaded.")
        self.is_leased = True
        self.turns += 1
        try:
            yield self.model
        finally:
            self.is_leased = False

    def has_waiters(self) -> bool:
        """As set."""
        return self.wanted


def small_config(**values: Any) -> TrainConfig:
    """Four steps' worth of everything, 64 px images."""
    return TrainConfig().replace(
        **{"resolution": 64, "min_bucket": 64, "batch_size": 2, "epochs": 2, "rank": 4, "learning_rate": 1e-3, **values}
    )


def small_plan(
    config: TrainConfig,
    *,
    sizes: Sequence[tuple[int, int]] = ((64, 64),) * 4,
    captions: Sequence[str] = CAPTIONS,
    regularisation: int = 0,
    repeats: int = 2,
) -> Plan:
    """A plan over images that exist by name only; the last `regularisation` of them are such."""
    own = len(sizes) - regularisation
    items = tuple(
        Item(ImageFile(Path(f"{n}.png"), *size, content_hash=f"{n:064}"), captions[n % len(captions)], int(n >= own))
        for n, size in enumerate(sizes)
    )
    concepts = [ScannedConcept(f"{repeats}_zok", Path(f"{repeats}_zok"), repeats, "zok", False, own)]
    if regularisation:
        concepts.append(ScannedConcept("1_thing", Path("1_thing"), 1, "", True, regularisation))
    return make_plan(Dataset(items, tuple(concepts), ()), config)


def random_latents(plan: Plan, *, seed: int = 0) -> LatentCache:
    """Random posteriors of the plan's sizes, about as large as a VAE's."""
    generator = torch.Generator().manual_seed(seed)
    posteriors: dict[int, Posterior | Path] = {}
    for item, place in enumerate(plan.placements):
        shape = (4, place.height // 8, place.width // 8)
        mean = 5 * torch.randn(shape, generator=generator)
        posteriors[item] = Posterior(mean, 0.1 * torch.rand(shape, generator=generator))
    return LatentCache(posteriors, frozenset())


def adapted(model: DiffusionModel, config: TrainConfig) -> Adapter:
    """A fresh adapter on the model."""
    return inject(model, spec_from_config(config), seed=config.seed)


def started(
    model: DiffusionModel, config: TrainConfig, *, plan: Plan | None = None, state: TrainState | None = None
) -> Training:
    """A run on the model with a fresh adapter; whoever starts it removes the adapter."""
    plan = plan or small_plan(config)
    adapter = adapted(model, config)
    try:
        return start_training(model, adapter, plan=plan, latents=random_latents(plan), config=config, state=state)
    except LoraTrainError:
        adapter.remove()
        raise


def run_to_end(training: Training, model: DiffusionModel, **host: Any) -> list[Event]:
    """All events of the run."""
    return list(train(training, host=OneModelHost(model, **host), control=Control()))


def losses(events: Sequence[Event]) -> list[float]:
    """The losses of the steps, in order."""
    return [event.loss for event in events if isinstance(event, StepDone)]
