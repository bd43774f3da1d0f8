"""Training inside a webui: its queue lock taken in turns, its weights in memory shared, or a copy of them.

`WebuiHost` is the same for every webui. What differs between them, where the model is and what state it may have
been left in, is behind the small protocol `Webui`, one file per kind.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lib_lora_train.core.errors import HostError, ModelAwayError, ModelError
from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.hosts.gpu import card_of, device_name
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, RunTarget
from lib_lora_train.hosts.webui.queue_lock import give_way, is_waited_for
from lib_lora_train.hosts.webui.txt2img import sampler_and_scheduler
from lib_lora_train.models.architecture import Hints, infer_spec
from lib_lora_train.models.checkpoint import file_hash, shapes_of
from lib_lora_train.models.diffusion_model import NO_OVERRIDES, DiffusionModel, ModelOverrides, model_on, with_overrides
from lib_lora_train.models.graft import can_be_trained_on, graft
from lib_lora_train.models.loading import ModelChoice, load_model, model_overrides, tokenizer_of
from lib_lora_train.sampling.sampler_options import SamplerOptions

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger

_LIVE_WEIGHTS = "fp8_base has no effect: the run trains on the webui's own weights, which need no second copy."
_SCHEDULE_TOLERANCE = 1e-4  # hosts keep ᾱ in float32 or float16; ours is float64


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What a webui knows of its model beyond the tensors.

    `alphas_cumprod` (T,) is None for the family's own schedule. `why_copied` is the reason why the tensors cannot be
    shared, "" if they can.
    """

    hints: Hints
    alphas_cumprod: Tensor | None
    why_copied: str = ""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What a webui has in memory.

    `identity` stays equal while it is the same checkpoint with the same VAE, however often its tensors are moved or
    made anew. `facts()` may raise ModelError for a model of another kind. `tensors()` gives the live ones by ldm name:
    to be called after `Webui.restore` only.
    """

    identity: tuple[object, ...]
    path: Path
    sha256: str
    vae: Path | None
    facts: Callable[[], ModelFacts]
    tensors: Callable[[], Mapping[str, Tensor]]


class Webui(Protocol):
    """What differs between webuis. All but the properties is called under the queue lock."""

    @property
    def name(self) -> str: ...

    @property
    def queue_lock(self) -> AbstractContextManager[Any]:
        """What the webui's own generations take; not re-entrant."""

    @property
    def device(self) -> torch.device:
        """Where the webui computes."""

    @property
    def sampler_habits(self) -> SamplerOptions:
        """How the webui draws."""

    @property
    def lora_dir(self) -> Path: ...

    def load(self) -> None:
        """Bring the chosen checkpoint into memory if none is there; HostError when there is none to load."""

    def present(self) -> LoadedModel | None:
        """What is in memory now; cheap, loads and moves nothing."""

    def restore(self) -> None:
        """The present model's weights on the device, free of LoRAs the webui wrote into them."""

    def show_loras(self) -> None:
        """Read the LoRA folder anew."""

    def is_chosen(self) -> bool:
        """Whether the next generation uses what is in memory, and does not load something else first."""

    def sampler_names(self) -> tuple[str, ...]:
        """The webui's samplers."""

    def upscaler_names(self) -> tuple[str, ...]:
        """The webui's upscalers whose models are there."""

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """The RGB image enlarged by one of them; errors as `hosts.base.Host.upscale`."""

    def paint(self, order: GenerationRequest, sampler: str) -> GeneratedImage:
        """One generation of the webui's own; HostError for a sampler or a LoRA file it does not have."""

    def taggers(self) -> Mapping[str, Callable[[], AbstractContextManager[Tagger]]]:
        """Turns with the webui's own describers of images, by name."""


class WebuiHost:
    """Lends the webui's model, see `hosts.base.Host`.

    A model lent from the webui's memory holds none of its storage between turns, so that the webui can move or free
    its weights as if we were not there.
    """

    def __init__(self, webui: Webui) -> None:
        self.name = webui.name
        self._webui = webui
        self._owner: int | None = None
        # The checkpoint each shared model was grafted on; models read from files are not in it.
        self._grafted_on: WeakKeyDictionary[DiffusionModel, tuple[object, ...]] = WeakKeyDictionary()

    @property
    def lora_dir(self) -> Path:
        """Where the webui looks for LoRAs."""
        return self._webui.lora_dir

    @property
    def sampler_habits(self) -> SamplerOptions:
        """How the webui draws: a sample then equals its image."""
        return self._webui.sampler_habits

    @contextmanager
    def lease(self, model: DiffusionModel | None = None) -> Iterator[DiffusionModel]:
        """`model`, or the one in memory, under the webui's queue lock; errors as `hosts.base.Host.lease`."""
        with self._turn():
            lent = self._graft(self._loaded(), "") if model is None else model
            with self._weights_of(lent) if lent in self._grafted_on else nullcontext():
                yield lent

    def is_wanted(self) -> bool:
        """Whether a generation waits; True where the lock does not tell, so that every turn is a short one."""
        return is_waited_for(self._webui.queue_lock)

    def footing(self, config: TrainConfig) -> RunTarget:
        """What is in memory, or the file that the settings name.

        Nothing is asked that could move weights, so weights that turn out to be unusable count as usable here. Webuis
        compute in 16 bit on a card, unless they are told otherwise.
        """
        device, present = self._webui.device, self._webui.present()
        named = typed_path(config.checkpoint) if config.checkpoint else None
        vae = typed_path(config.vae) if config.vae else None
        is_present = present is not None and (named is None or named.resolve() == present.path.resolve())
        has_vae = vae is None or (
            present is not None and present.vae is not None and vae.resolve() == present.vae.resolve()
        )
        card = card_of(device)
        return RunTarget(
            checkpoint=named or (present.path if present else None),
            is_loaded=is_present and has_vae and config.precision == "auto",
            number_bytes=4 if device.type == "cpu" else 2 if config.precision == "auto" else 0,
            device=device_name(device, card),
            card=card,
        )

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The model in memory, shared if that can be; read from its file where the config asks for something else.

        Files are read without the lock: the webui goes on generating meanwhile.
        """
        checkpoint = typed_path(config.checkpoint) if config.checkpoint else None
        vae = typed_path(config.vae) if config.vae else None
        with self._turn():
            if checkpoint and not self._is_present(checkpoint):
                loaded, why = None, "it is not the one the webui has loaded"
            else:
                loaded = self._loaded()
                checkpoint, why = loaded.path, self._why_copied(loaded, vae, config.precision)
        if loaded is None or why:
            vae = vae or (loaded.vae if loaded else None)
            return self._read(
                ModelChoice(checkpoint, vae, config.precision, config.fp8_base, model_overrides(config)), why
            )
        sha256 = loaded.sha256 or file_hash(loaded.path)
        with self._turn():
            if self._loaded().identity != loaded.identity:
                raise HostError("Another checkpoint was loaded while the run began. Start it again.")
            note = _LIVE_WEIGHTS if config.fp8_base else ""
            model = self._graft(self._loaded(), sha256, note=note, told=model_overrides(config))
            model.let_go()
            return model

    def show_loras(self) -> None:
        """Let new files appear in the webui's list; a webui that cannot is no reason to fail."""
        self._webui.show_loras()

    def sampler_names(self) -> tuple[str, ...]:
        """The webui's own samplers."""
        return self._webui.sampler_names()

    def painter(self, sampler: str, model: DiffusionModel | None = None) -> WebuiPainter:
        """The webui's own sampler on the model's checkpoint; errors as `hosts.base.Host.painter`."""
        sampler_and_scheduler(sampler)
        with self._turn():
            present = self._loaded()
        if model is not None and (model.path is None or model.path.resolve() != present.path.resolve()):
            raise HostError(
                f"The webui has {present.path.stem} loaded and would draw with it, not with {model.name}. "
                "Load that checkpoint at the top of the page to let the webui draw."
            )
        identity = present.identity if model is None else self._grafted_on.get(model, present.identity)
        return WebuiPainter(self, sampler, present.path.stem, identity)

    def paint(
        self, order: GenerationRequest, sampler: str, *, identity: tuple[object, ...], name: str
    ) -> GeneratedImage:
        """One image by the webui itself, if its next generation uses the checkpoint of this identity."""
        with self._turn():
            self._required(identity, name)
            if not self._webui.is_chosen():
                raise ModelAwayError(
                    f"Another checkpoint or VAE is chosen in the webui, and images are to be drawn with {name}. "
                    f"It goes on when {name} is chosen again."
                )
            return self._webui.paint(order, sampler)

    def upscaler_names(self) -> tuple[str, ...]:
        """The webui's own upscalers."""
        return self._webui.upscaler_names()

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """The image enlarged under the webui's queue lock; errors as `hosts.base.Host.upscale`."""
        with self._turn():
            return self._webui.upscale(image, size, upscaler)

    def tagger_names(self) -> tuple[str, ...]:
        """The webui's own describers of images."""
        return tuple(self._webui.taggers())

    @contextmanager
    def tagger(self, name: str) -> Iterator[Tagger]:
        """A turn with one of them under the webui's queue lock; errors as `hosts.base.Host.tagger`."""
        turn = self._webui.taggers().get(name)
        if turn is None:
            raise HostError(f"This webui has no {name}. Choose another tagger.")
        with self._turn(), turn() as tagger:
            yield tagger

    # --- turns ---------------------------------------------------------------------------------
    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The queue lock. Whoever waited for it gets it before this thread can have it again."""
        me = threading.get_ident()
        if self._owner == me:
            raise HostError("The model is already leased by this thread: a lease must not be taken inside another.")
        waited_for = False
        try:
            with self._webui.queue_lock:
                self._owner = me
                try:
                    yield
                finally:
                    self._owner = None
                    waited_for = self.is_wanted()
        finally:
            if waited_for:
                give_way(self._webui.queue_lock)

    @contextmanager
    def _weights_of(self, model: DiffusionModel) -> Iterator[None]:
        """The model's parameters on the webui's tensors, as long as these are still the same checkpoint's."""
        present = self._required(self._grafted_on[model], model.name)
        self._webui.restore()
        try:
            model.follow(present.tensors())
            yield
        finally:
            model.let_go()

    def _required(self, identity: tuple[object, ...], name: str) -> LoadedModel:
        """The model in memory, if it is the one of this identity; else ModelAwayError."""
        present = self._webui.present()
        if present is None or present.identity != identity:
            now = f"{present.path.stem} is loaded now" if present else "No model is loaded now"
            raise ModelAwayError(
                f"{now}, and the run trains {name}. It goes on when {name} is loaded again, with its VAE."
            )
        return present

    # --- models --------------------------------------------------------------------------------
    def _loaded(self) -> LoadedModel:
        """The model in memory, loaded first if there is none."""
        present = self._webui.present()
        if present is None:
            self._webui.load()
            present = self._webui.present()
        if present is None:
            raise HostError(
                "The webui has no model loaded. Choose a checkpoint at the top of the page, then try again."
            )
        return present

    def _is_present(self, checkpoint: Path) -> bool:
        present = self._webui.present()
        return present is not None and present.path.resolve() == checkpoint.resolve()

    def _why_copied(self, loaded: LoadedModel, vae: Path | None, precision: str) -> str:
        """Why the weights in memory cannot be used as they are; "" if they can."""
        reason = loaded.facts().why_copied
        if reason:
            return reason
        if vae is not None and (loaded.vae is None or vae.resolve() != loaded.vae.resolve()):
            return "the settings name another VAE than the webui has loaded"
        if precision != "auto":
            return "the settings name a precision of their own"
        self._webui.restore()
        tensors = loaded.tensors()
        if any(tensor.is_meta for tensor in tensors.values()):
            return "the webui keeps the weights out of memory"
        unusable = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values() if not can_be_trained_on(t))
        return f"the webui keeps the weights as {unusable.most_common(1)[0][0]}" if unusable else ""

    def _read(self, choice: ModelChoice, why: str) -> DiffusionModel:
        """The copy path: the same modules, on tensors read from the file."""
        assert choice.checkpoint is not None
        model = load_model(choice, self._webui.device)
        size = sum(row.bytes for row in model.report if row.status != "unused") / 2**20
        note = f"{choice.checkpoint.name} was read from its file, because {why}. That takes {size:.0f} MiB more memory."
        return replace(model, note=f"{note} {model.note}".strip())

    def _graft(
        self, loaded: LoadedModel, sha256: str, *, note: str = "", told: ModelOverrides = NO_OVERRIDES
    ) -> DiffusionModel:
        """Our modules on the webui's tensors."""
        facts = loaded.facts()
        self._webui.restore()
        tensors = loaded.tensors()
        # Processors compute 16 bit slowly or not at all: there the webui's 16-bit parts are converted, once.
        dtype = torch.float32 if self._webui.device.type == "cpu" else None
        try:
            spec = infer_spec(shapes_of(tensors), hints=facts.hints)
            model = model_on(
                graft(tensors, spec, dtype),
                spec=spec,
                tokenizers=[tokenizer_of(loaded.path)] * len(spec.text_encoders),
                name=loaded.path.stem,
                file_hash=sha256,
                path=loaded.path,
            )
        except ModelError as reason:
            raise ModelError(f"{loaded.path.name}: {reason}") from reason
        model = with_overrides(replace(_with_schedule(model, facts.alphas_cumprod), note=note), told)
        self._grafted_on[model] = loaded.identity
        return model


@dataclass(frozen=True, eq=False)
class WebuiPainter:
    """See `hosts.base.Txt2Img`."""

    host: WebuiHost
    sampler: str
    model_name: str
    identity: tuple[object, ...]

    def draw(self, order: GenerationRequest) -> GeneratedImage:
        """One image; errors as `hosts.base.Txt2Img.draw`."""
        return self.host.paint(order, self.sampler, identity=self.identity, name=self.model_name)


def _with_schedule(model: DiffusionModel, alphas_cumprod: Tensor | None) -> DiffusionModel:
    """The model with the webui's own noise schedule where it is not the family's."""
    if alphas_cumprod is None:
        return model
    theirs = alphas_cumprod.detach().to("cpu", torch.float64).clone()
    ours = model.schedule.alphas_cumprod
    if theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=0.0, atol=_SCHEDULE_TOLERANCE):
        return model
    return replace(model, schedule=replace(model.schedule, alphas_cumprod=theirs))
