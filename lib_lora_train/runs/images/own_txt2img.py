"""Images of past runs by the trainer's own samplers, where there is no webui."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lib_lora_train.adapters.files.decode import ParsedLora, parse_sound_file
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.inject import has_adapter, inject_parsed
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.settings.samples import SAMPLERS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import GenerationInterrupted, HostError
from lib_lora_train.core.generators import WithResult
from lib_lora_train.core.wording import join_names
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch, Host
from lib_lora_train.methods.textual_inversion import embedding_on_model
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.placeholder_words import placeholder_word
from lib_lora_train.sampling.infotext import infotext
from lib_lora_train.sampling.sample import sample_in_steps
from lib_lora_train.sampling.samplers import sampler_for


class OwnTxt2Img:
    """Implements `Txt2Img` on the checkpoint of a run; `files` are its LoRA files by their names in prompts."""

    def __init__(self, host: Host, config: TrainConfig, files: Mapping[str, Path], sampler: str) -> None:
        if sampler not in SAMPLERS:
            raise HostError(f"{sampler} needs a webui. Choose one of {join_names(SAMPLERS)}.")
        self._host = host
        self._files = files
        self._model = host.load_model(config)
        self._used = sampler_for(self._model.schedule, sampler, host.sampler_options)
        self.sampler = self._used.name
        self._parse = lru_cache(maxsize=1)(_parse)

    @property
    def model_name(self) -> str:
        """The name of the checkpoint."""
        return self._model.name

    def generate(self, request: GenerationRequest, watch: GenerationWatch | None = None) -> GeneratedImage:
        """The image, drawn under one lease. GenerationInterrupted if the `watch` ends it, HostError while a training
        uses the model.
        """
        prompt = SamplePrompt(
            prompt=request.prompt,
            negative=request.negative,
            width=request.width,
            height=request.height,
            seed=request.seed,
            steps=request.steps,
            cfg=request.cfg,
        )
        with self._host.lease(self._model) as model, self._lora(model, request):
            image = self._sample(model, prompt, request.clip_skip, watch)
        text = infotext(
            prompt,
            sampler=self._used,
            clip_skip=request.clip_skip,
            model=model.name,
            lora=request.lora,
            strength=request.strength,
        )
        return GeneratedImage(image, text)

    def _sample(
        self, model: DiffusionModel, prompt: SamplePrompt, clip_skip: int, watch: GenerationWatch | None
    ) -> Image.Image:
        steps = sample_in_steps(
            model, [prompt], sampler=self.sampler, clip_skip=clip_skip, sampler_options=self._host.sampler_options
        )
        drawing = WithResult(steps)
        for at in drawing:
            if watch:
                watch.on_step(at.step)
                if watch.is_cancelled():
                    steps.close()
                    raise GenerationInterrupted("Generation was cancelled.")
        return drawing.result[0]

    @contextmanager
    def _lora(self, model: DiffusionModel, request: GenerationRequest) -> Iterator[None]:
        """Inside, the model has the embedding of the request, or its LoRA at its strength."""
        if has_adapter(model) or placeholder_word(model):
            raise HostError("A training is using this model. Draw the grid again when it has ended.")
        if request.embedding:
            with embedding_on_model(model, request.embedding, request.embedding.stem):
                yield
            return
        if not request.lora:
            yield
            return
        adapter, _ = inject_parsed(model, self._parse(self._files[request.lora]))
        try:
            with adapter.strength(request.strength):
                yield
        finally:
            adapter.remove()


def _parse(path: Path) -> ParsedLora:
    return parse_sound_file(read_adapter(path))
