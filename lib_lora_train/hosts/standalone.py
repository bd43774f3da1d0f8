"""The host without a webui: it reads a checkpoint file itself and lends the model to the app's threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.hosts.gpu import card_of, device_name
from lib_lora_train.hosts.host import EMBEDDED_CHECKPOINT as EMBEDDED_CHECKPOINT
from lib_lora_train.hosts.host import Footing
from lib_lora_train.models.architecture import infer_spec
from lib_lora_train.models.checkpoint import load_checkpoint, load_vae, replace_vae, shapes_of
from lib_lora_train.models.checkpoint_hints import read_hints, tokenizer_folder
from lib_lora_train.models.diffusion_model import (
    NOTHING_TOLD,
    DiffusionModel,
    Told,
    as_told,
    assemble,
    looks_like_v_prediction,
)
from lib_lora_train.models.fp8 import store_in_eight_bit
from lib_lora_train.models.noise_schedule import schedule_for
from lib_lora_train.models.text_encoding import load_tokenizer
from lib_lora_train.sampling.sampler_options import SamplerHabits

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.dataset_tools.tagger import Tagger
    from lib_lora_train.hosts.host import Painter

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how; None means the embedded tiny model, and the checkpoint's own VAE."""

    checkpoint: Path | None = None
    vae: Path | None = None
    precision: str = "auto"
    eight_bit: bool = False
    told: Told = NOTHING_TOLD


def default_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_model(choice: ModelChoice, device: torch.device) -> DiffusionModel:
    """The chosen model on `device`, without network; raises ModelError for files that cannot be used."""
    path = choice.checkpoint or EMBEDDED_CHECKPOINT
    file = load_checkpoint(path)
    tensors = file.tensors if choice.vae is None else replace_vae(file.tensors, load_vae(choice.vae))
    hints = read_hints(path, file.metadata)
    try:
        spec = infer_spec(shapes_of(tensors), hints=hints)
        model = assemble(
            tensors,
            spec=spec,
            tokenizers=[tokenizer_of(file.path)] * len(spec.text_encoders),
            name=path.stem,
            file_hash=file.hash,
            dtype=_dtype(choice.precision, device),
            device=device,
            path=path,
        )
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from reason
    if spec.family == "sd2" and hints.prediction_type is None:
        model = _with_measured_prediction(model)
    model = as_told(model, choice.told)
    return _in_eight_bit(model) if choice.eight_bit else model


def _in_eight_bit(model: DiffusionModel) -> DiffusionModel:
    """The model with its UNet stored in 8 bit; nothing else holds on to the weights it had."""
    saved = store_in_eight_bit(model.unet) / 2**20
    return replace(model, slots=(), note=f"The UNet is stored in 8 bit, which saves {saved:.0f} MiB.")


def _with_measured_prediction(model: DiffusionModel) -> DiffusionModel:
    """SD2's two kinds, 512 px (epsilon) and 768 px (v), differ in nothing that a file says."""
    spec = replace(model.spec, prediction_type="v_prediction" if looks_like_v_prediction(model.unet) else "epsilon")
    return replace(model, spec=spec, schedule=schedule_for(spec))


def tokenizer_of(checkpoint: Path) -> Any:
    """The checkpoint's own tokenizer, else the embedded one: all three families share CLIP's vocabulary."""
    return load_tokenizer(tokenizer_folder(checkpoint) or EMBEDDED_CHECKPOINT.parent / "tokenizer")


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """None, the file's own, for "auto" on a graphics card; processors compute 16 bit slowly or not at all."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else None
    if precision not in _DTYPES:
        raise ModelError(f"precision {precision!r} is not one of auto, {', '.join(_DTYPES)}.")
    return _DTYPES[precision]


def told_by(config: TrainConfig) -> Told:
    """What the settings say of the model."""
    return Told(config.prediction_type, config.zero_terminal_snr)


class FairLock:
    """A lock whose waiters get it in the order they came, and which knows whether anybody waits.

    Not re-entrant: taking it twice in one thread raises HostError instead of hanging for ever.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def acquire(self) -> None:
        """Returns when the lock is this thread's."""
        me = threading.get_ident()
        with self._guard:
            if self._owner == me:
                raise HostError("The model is already leased by this thread: a lease must not be taken inside another.")
            if self._owner is None:
                self._owner = me
                return
            turn = threading.Event()
            self._queue.append((me, turn))
        has_turn = False
        try:
            has_turn = turn.wait()
        finally:
            if not has_turn:  # Ctrl-C: nobody must be left waiting for a thread that has gone
                self._leave(me, turn)

    def _leave(self, me: int, turn: threading.Event) -> None:
        with self._guard:
            if (me, turn) in self._queue:
                self._queue.remove((me, turn))
                return
        self.release()

    def release(self) -> None:
        """Hands the lock to the thread that has waited longest."""
        with self._guard:
            if not self._queue:
                self._owner = None
                return
            self._owner, turn = self._queue.popleft()
            turn.set()

    def is_wanted(self) -> bool:
        """Whether a thread waits for it."""
        return bool(self._queue)


class StandaloneHost:
    """Lends a model it has read from a file; see `hosts.base.Host`. Nothing is read before the first use."""

    name = "stand-alone"

    def __init__(
        self,
        checkpoint: Path | None,
        vae: Path | None,
        lora_dir: Path,
        device: torch.device | str | None = None,
        precision: str = "auto",
    ) -> None:
        self.lora_dir = lora_dir
        self.device = default_device() if device is None else torch.device(device)
        self._default = ModelChoice(checkpoint, vae, precision)
        self._choice: ModelChoice | None = None
        self._model: DiffusionModel | None = None
        self._lock = FairLock()

    @property
    def sampler_habits(self) -> SamplerHabits:
        """The usual ones, with noise from the processor: the same pictures on every machine."""
        return SamplerHabits()

    @contextmanager
    def lease(self, model: DiffusionModel | None = None) -> Iterator[DiffusionModel]:
        """`model` itself, else the loaded one, for this thread alone; the default one if none was loaded yet."""
        self._lock.acquire()
        try:
            yield model or self._loaded(self._choice or self._default)
        finally:
            self._lock.release()

    def is_wanted(self) -> bool:
        """Whether another thread waits for the lease."""
        return self._lock.is_wanted()

    def footing(self, config: TrainConfig) -> Footing:
        """The file that would be read, and whether it was read before."""
        choice, card = self._chosen(config), card_of(self.device)
        return Footing(
            checkpoint=choice.checkpoint or EMBEDDED_CHECKPOINT,
            is_loaded=self._model is not None and choice == self._choice,
            number_bytes=4
            if choice.precision == "fp32" or (choice.precision, self.device.type) == ("auto", "cpu")
            else 0,
            device=device_name(self.device, card),
            card=card,
        )

    def load_model(self, config: TrainConfig) -> DiffusionModel:
        """The config's model; where the config names none, the one this host was started with.

        Waits for the lease, so that no turn loses its model in the middle.
        """
        self._lock.acquire()
        try:
            return self._loaded(self._chosen(config))
        finally:
            self._lock.release()

    def show_loras(self) -> None:
        """Nothing to do: no list of LoRAs is kept here."""

    def sampler_names(self) -> tuple[str, ...]:
        """None: everything is drawn by the trainer here."""
        return ()

    def upscaler_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def upscale(self, picture: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        """HostError."""
        wanted = f"{picture.width}×{picture.height} px to {size[0]}×{size[1]}"
        raise HostError(
            f"{upscaler} is an upscaler of a webui, and there is none here to bring {wanted}. Take Lanczos."
        )

    def painter(self, sampler: str, model: DiffusionModel | None = None) -> Painter:
        """HostError: there is no webui to draw for `model`."""
        name = model.name if model else "the model"
        raise HostError(f"{sampler} is a sampler of a webui, and there is none here to draw with {name}.")

    def tagger_names(self) -> tuple[str, ...]:
        """None: DeepBooru and BLIP belong to webuis."""
        return ()

    def tagger(self, name: str) -> AbstractContextManager[Tagger]:
        """HostError: there is no webui to ask."""
        raise HostError(f"{name} belongs to a webui, and there is none here. Use a WD14 model instead.")

    def _chosen(self, config: TrainConfig) -> ModelChoice:
        own = self._default
        checkpoint = typed_path(config.checkpoint) if config.checkpoint else own.checkpoint
        vae = typed_path(config.vae) if config.vae else None
        if vae is None and checkpoint == own.checkpoint:
            vae = own.vae
        precision = own.precision if config.precision == "auto" else config.precision
        return ModelChoice(checkpoint, vae, precision, config.fp8_base, told_by(config))

    def _loaded(self, choice: ModelChoice) -> DiffusionModel:
        if self._model is None or choice != self._choice:
            self._model = None  # frees the old weights before the new ones are read
            self._model = load_model(choice, self.device)
            self._choice = choice
        return self._model
