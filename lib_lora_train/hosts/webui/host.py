"""Training inside a webui: under its queue lock, on the weights it has in memory or on a copy of them.

`WebuiHost` is the same for every webui. The differences between them, such as where the model is and what state a
generation leaves it in, are behind the small protocol `Webui` in `webui.py`, with one file per webui.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from lib_lora_train.core.errors import HostError, ModelError, ModelUnavailableError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.hosts.fair_lock import NESTED_LEASE
from lib_lora_train.hosts.gpu import device_name, find_gpu
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch, RunTarget
from lib_lora_train.hosts.webui.copied_weights import notes_on_copies
from lib_lora_train.hosts.webui.cpu_threads import limited_threads, make_thread_limit
from lib_lora_train.hosts.webui.guest import restored_random_state
from lib_lora_train.hosts.webui.loaded_model import LoadedModel, ModelIdentity, Usability, is_same_file, with_schedule
from lib_lora_train.hosts.webui.queue_lock import has_waiters, wait_for_handover
from lib_lora_train.hosts.webui.txt2img import sampler_and_scheduler
from lib_lora_train.hosts.webui.txt2img_of_checkpoint import WebuiTxt2Img
from lib_lora_train.hosts.webui.webui import Webui
from lib_lora_train.models.checkpoint import file_hash, shapes_of
from lib_lora_train.models.diffusion_model import (
    NO_OVERRIDES,
    DiffusionModel,
    ModelOverrides,
    model_from_graft,
    with_overrides,
)
from lib_lora_train.models.graft import can_be_trained_on, graft
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.loading import (
    ModelChoice,
    load_checkpoint_tokenizer,
    load_model,
    overrides_from_config,
    require_trainable,
)
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.sampling.used_sampler import used_sampler

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger

_LIVE_WEIGHTS = "fp8_base has no effect: the run trains on the weights that the webui has loaded."


class WebuiHost:
    """Implements `hosts.host.Host` with the webui's model.

    Between leases, a model that shares the webui's weights holds no reference to them, so that the webui can move or
    free them as usual.
    """

    follows_selection = True

    def __init__(self, webui: Webui) -> None:
        self.name = webui.name
        self._webui = webui
        self._owner: int | None = None
        self._thread_limit = make_thread_limit()
        # The identity of the checkpoint each shared model was grafted on; models read from files are not listed.
        self._grafted_on: WeakKeyDictionary[DiffusionModel, ModelIdentity] = WeakKeyDictionary()
        self._checked: tuple[ModelIdentity, Usability] | None = None

    @property
    def lora_dir(self) -> Path:
        """The webui's folder for new LoRA files."""
        return self._webui.lora_dir

    @property
    def lora_dirs(self) -> tuple[Path, ...]:
        """All folders in which the webui finds LoRA files."""
        return self._webui.lora_dirs

    @property
    def embedding_dir(self) -> Path:
        """The webui's folder of embeddings."""
        return self._webui.embedding_dir

    def lora_file(self, name: str) -> Path | None:
        """The file that the webui reads under this name."""
        return self._webui.lora_file(name)

    @property
    def sampler_options(self) -> SamplerOptions:
        """How the webui samples, so that our samples match its images."""
        return self._webui.sampler_options

    @contextmanager
    def lease(self, model: DiffusionModel | None = None) -> Iterator[DiffusionModel]:
        """`model`, or the one in memory, under the webui's queue lock; errors as `hosts.host.Host.lease`."""
        with self._locked():
            leased = self._graft(self._require_model(), "") if model is None else model
            weights = self._weights_of(leased) if leased in self._grafted_on else nullcontext()
            with weights, limited_threads(self._thread_limit, leased.device):
                yield leased

    def has_waiters(self) -> bool:
        """Whether a generation is waiting; True if the lock cannot say, so that every lease is short."""
        return has_waiters(self._webui.queue_lock)

    def run_target(self, config: TrainConfig) -> RunTarget:
        """The model in memory, or the file that the settings name.

        Nothing that could move weights is called, so weights that later prove unusable count as usable here. Webuis
        compute in 16 bit on a GPU unless set otherwise.
        """
        device, current = self._webui.device, self._webui.loaded_model()
        selected = current.path if current else self._webui.selected_checkpoint()
        named = user_path(config.checkpoint) if config.checkpoint else None
        vae = user_path(config.vae) if config.vae else None
        is_current = current is not None and is_same_file(named, current.path) and is_same_file(vae, current.vae)
        usability = self._usability(current) if current and is_current else Usability()
        is_loaded = is_current and config.precision == "auto" and not usability.why_copied
        gpu = find_gpu(device)
        return RunTarget(
            webui=self.name,
            checkpoint=named or selected,
            is_loaded=is_loaded,
            dtype_bytes=4 if device.type == "cpu" else 2 if config.precision == "auto" else 0,
            device=device_name(device, gpu),
            gpu=gpu,
            vae=vae or (current.vae if current else None),
            precision=current.trained_in(device) if current and is_loaded else "",
            problem=usability.problem,
            weights=usability.weights if is_loaded else None,
            is_selected=named is None and current is None,
            clip_skip=self._webui.clip_skip,
            applies_clip_skip_to_sdxl=self._webui.applies_clip_skip_to_sdxl,
        )

    def _usability(self, loaded: LoadedModel) -> Usability:
        """Checked once per loaded model: the page asks after every change of the form."""
        if self._checked is None or self._checked[0] != loaded.identity:
            self._checked = loaded.identity, loaded.usability(self._webui.device)
        return self._checked[1]

    def checkpoint_files(self) -> tuple[Path, ...]:
        """The checkpoints in the webui's list."""
        return self._webui.checkpoint_files()

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The model in memory, shared if possible; read from its file if the config names something else.

        Files are read without the lock, so the webui can generate meanwhile.
        """
        checkpoint = user_path(config.checkpoint) if config.checkpoint else None
        vae, overrides = user_path(config.vae) if config.vae else None, overrides_from_config(config)
        with self._locked():
            current = self._webui.loaded_model()
            if not is_same_file(checkpoint, current.path if current else None):
                loaded, why = None, "the webui has another checkpoint loaded"
            else:
                loaded = self._require_model()
                checkpoint, why = loaded.path, self._why_copied(loaded, vae, config.precision)
        if loaded is None or why:
            if loaded is not None and loaded.text_encoders:
                raise HostError(loaded.text_encoders_missing(why))
            vae = vae or (loaded.vae if loaded else None)
            return self._read(ModelChoice(checkpoint, vae, config.precision, config.fp8_base, overrides), why)
        sha256 = loaded.sha256 or file_hash(loaded.path)
        with self._locked():
            if self._require_model().identity != loaded.identity:
                raise HostError("The webui's model was changed while the run was starting. Start it again.")
            note = _LIVE_WEIGHTS if config.fp8_base else ""
            model = self._graft(self._require_model(), sha256, note=note, overrides=overrides)
            model.release_weights()
            return model

    def prompt_tokens(self, texts: Sequence[str]) -> list[list[str]] | None:
        """By the loaded model's own tokenizer; takes no lock."""
        loaded = self._webui.loaded_model()
        encoder = loaded.facts().prompt_encoder if loaded and not self._usability(loaded).problem else None
        return encoder.tokens(texts) if encoder else None

    def refresh_loras(self) -> None:
        """Update the webui's lists of LoRAs and embeddings so that new files appear.

        The webui empties its list first, so a generation meanwhile would miss its LoRAs: hence under the lock.
        """
        with self._locked():
            self._webui.refresh_loras()

    def sampler_names(self) -> tuple[str, ...]:
        """The webui's own samplers."""
        return self._webui.sampler_names()

    def txt2img(self, sampler: str, model: DiffusionModel | None = None) -> WebuiTxt2Img:
        """The webui's own sampler on the model's checkpoint; errors as `hosts.host.Host.txt2img`."""
        sampler_and_scheduler(sampler)
        with self._locked():
            current = self._require_model()
        if self.sampler_options.flow_shift is not None:
            sampler = used_sampler(sampler, "rectified_flow").name
        if model is not None and (model.path is None or model.path.resolve() != current.path.resolve()):
            raise HostError(
                f"The webui would generate with {current.path.stem}, which it has loaded, not with {model.name}. "
                "Load that checkpoint at the top of the page to use the webui's sampler."
            )
        identity = current.identity if model is None else self._grafted_on.get(model, current.identity)
        return WebuiTxt2Img(self, sampler, current.path.stem, identity)

    def generate(
        self,
        request: GenerationRequest,
        sampler: str,
        *,
        identity: ModelIdentity,
        name: str,
        watch: GenerationWatch | None = None,
    ) -> GeneratedImage:
        """One image from the webui; ModelUnavailableError unless it would use the checkpoint of this identity."""
        with self._locked(), restored_random_state():
            self._require_identity(identity)
            other = self._webui.other_selection()
            if other:
                raise ModelUnavailableError(
                    f"Another {other} is selected in the webui, but images need {name} as it is loaded now. "
                    "The run continues when the selection is changed back."
                )
            return self._webui.generate(request, sampler, watch)

    def upscaler_names(self) -> tuple[str, ...]:
        """The webui's own upscalers."""
        return self._webui.upscaler_names()

    def upscale(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """The image enlarged under the webui's queue lock; errors as `hosts.host.Host.upscale`."""
        with self._locked(), restored_random_state():
            return self._webui.upscale(image, size, upscaler)

    def tagger_names(self) -> tuple[str, ...]:
        """The webui's own taggers."""
        return tuple(self._webui.taggers())

    @contextmanager
    def tagger(self, name: str) -> Iterator[Tagger]:
        """Exclusive use of a tagger under the webui's queue lock; errors as `hosts.host.Host.tagger`."""
        open_tagger = self._webui.taggers().get(name)
        if open_tagger is None:
            raise HostError(f"This webui has no {name}. Choose another tagger.")
        with self._locked(), restored_random_state(), open_tagger() as tagger:
            yield tagger

    # --- the lock ------------------------------------------------------------------------------
    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the queue lock. On release, waiting threads get it before this thread can take it again."""
        me = threading.get_ident()
        if self._owner == me:
            raise HostError(NESTED_LEASE)
        had_waiters = False
        try:
            with self._webui.queue_lock:
                self._owner = me
                try:
                    yield
                finally:
                    self._owner = None
                    had_waiters = self.has_waiters()
        finally:
            if had_waiters:
                wait_for_handover(self._webui.queue_lock)

    @contextmanager
    def _weights_of(self, model: DiffusionModel) -> Iterator[None]:
        """Attach the model to the webui's tensors; ModelUnavailableError if these are no longer the model's."""
        current = self._require_identity(self._grafted_on[model])
        self._webui.restore_weights()
        try:
            try:
                model.rebind(current.tensors())
            except ModelError as reason:
                text = f"The webui changed the weights of {model.name} ({str(reason).removesuffix('.')})."
                raise ModelUnavailableError(f"{text} The run continues when they are as before.") from reason
            yield
        finally:
            model.release_weights()

    def _require_identity(self, identity: ModelIdentity) -> LoadedModel:
        """The model in memory if it has this identity, else ModelUnavailableError, which says what changed."""
        current = self._webui.loaded_model()
        if current is None or current.identity != identity:
            raise ModelUnavailableError(identity.changed_to(current.identity if current else None))
        return current

    # --- models --------------------------------------------------------------------------------
    def _require_model(self) -> LoadedModel:
        """The model in memory; loads the selected checkpoint if there is none."""
        current = self._webui.loaded_model()
        if current is None:
            with restored_random_state():
                self._webui.load()
            current = self._webui.loaded_model()
        if current is None:
            raise HostError("The webui has no model loaded. Select a checkpoint at the top of the page and try again.")
        return current

    def _why_copied(self, loaded: LoadedModel, vae: Path | None, precision: str) -> str:
        """Why the weights in memory cannot be shared; "" if they can."""
        reason = loaded.facts().why_copied
        if reason:
            return reason
        if not is_same_file(vae, loaded.vae):
            return "the settings name another VAE than the webui has loaded"
        if precision != "auto":
            return "the settings set a precision"
        self._webui.restore_weights()
        tensors = loaded.tensors()
        if any(tensor.is_meta for tensor in tensors.values()):
            return "the webui keeps the weights out of memory"
        unusable = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values() if not can_be_trained_on(t))
        return f"the webui keeps the weights as {unusable.most_common(1)[0][0]}" if unusable else ""

    def _read(self, choice: ModelChoice, why: str) -> DiffusionModel:
        """A model on tensors read from the file instead of the webui's memory."""
        assert choice.checkpoint is not None
        model = require_trainable(load_model(choice, self._webui.device))
        size = sum(row.bytes for row in model.report if row.status != "unused") / 2**20
        note = f"{choice.checkpoint.name} was read from its file because {why}. That takes {size:.0f} MiB more memory."
        return replace(model, note=f"{note} {model.note}".strip())

    def _graft(
        self, loaded: LoadedModel, sha256: str, *, note: str = "", overrides: ModelOverrides = NO_OVERRIDES
    ) -> DiffusionModel:
        """A model whose parameters are the webui's tensors."""
        facts = loaded.facts()
        self._webui.restore_weights()
        tensors = loaded.tensors()
        # CPUs compute in 16 bit slowly or not at all, so the webui's 16-bit parts are converted once.
        dtype = torch.float32 if self._webui.device.type == "cpu" else None
        try:
            spec = infer_spec(shapes_of(tensors), hints=loaded.hints(facts))
            model = model_from_graft(
                graft(tensors, spec, dtype, self._webui.device),
                spec=spec,
                tokenizers=[load_checkpoint_tokenizer(loaded.path)] * len(spec.text_encoders),
                name=loaded.path.stem,
                file_hash=sha256,
                path=loaded.path,
            )
        except ModelError as reason:
            raise ModelError(f"{loaded.path.name}: {reason}") from reason
        vae_hash = file_hash(loaded.vae) if loaded.vae and loaded.vae.is_file() else ""
        note = " ".join(part for part in (*notes_on_copies(model.report), note) if part)
        model = replace(with_schedule(model, facts.alphas_cumprod), note=note, vae_hash=vae_hash)
        if facts.prompt_encoder:
            model = replace(model, vae=facts.vae, prompt_encoder=facts.prompt_encoder)
        model = with_overrides(model, overrides)
        self._grafted_on[model] = loaded.identity
        return model
