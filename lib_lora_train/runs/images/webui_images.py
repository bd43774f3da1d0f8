"""Images that the webui generates for a run or its epoch grid, with any of its samplers.

Each image is a separate generation in the webui's queue, so users' own generations run in between.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from lib_lora_train.config.method_catalog import name_in_prompt
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import GenerationInterrupted
from lib_lora_train.core.events import Event, Progress
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch, Txt2Img
from lib_lora_train.training.wait_for_model import follow_requests, retry_without_model

_POLL_SECONDS = 0.2


def generation_request(
    prompt: SamplePrompt, *, lora: Path | None, clip_skip: int, strength: float = 1.0, word: str = ""
) -> GenerationRequest:
    """The request for a sample prompt with a LoRA file (None: without) at a strength.

    With a `word`, the file is an embedding, and the prompt has its name in the place of this word.
    """
    embedding = lora if word else None
    if embedding:
        prompt, lora = replace(prompt, prompt=name_in_prompt(prompt.prompt, word, embedding.stem, strength)), None
    return GenerationRequest(
        embedding=embedding,
        prompt=prompt.prompt,
        negative=prompt.negative,
        width=prompt.width,
        height=prompt.height,
        seed=prompt.seed,
        steps=prompt.steps,
        cfg=prompt.cfg,
        clip_skip=clip_skip,
        lora=lora.stem if lora else "",
        lora_file=lora,
        strength=strength,
    )


def generate_in_webui(
    txt2img: Txt2Img, request: GenerationRequest, control: Control, *, done: int, total: int
) -> Generator[Event, None, GeneratedImage]:
    """The image, after `done` of `total` others; waits while another checkpoint is loaded.

    Yields its sampling steps. RunStoppedError, after the current step, when the run is stopped.
    """
    yield from follow_requests(control)

    def attempt() -> Generator[Event, None, GeneratedImage]:
        try:
            return (yield from _generate(txt2img, request, control, done, total))
        except GenerationInterrupted:
            if control.is_stopped:
                raise RunStoppedError from None
            raise

    return (yield from retry_without_model(control, attempt))


def _generate(
    txt2img: Txt2Img, request: GenerationRequest, control: Control, done: int, total: int
) -> Generator[Event, None, GeneratedImage]:
    """The webui generates in a thread, so that this one can yield the steps meanwhile."""
    now = _Step()
    watch = GenerationWatch(now.note, lambda: control.is_stopped or now.is_abandoned)
    with ThreadPoolExecutor(1, "lora-train-image") as threads:
        image, shown = threads.submit(txt2img.generate, request, watch), 0
        try:
            while not wait([image], _POLL_SECONDS).done:
                if now.step > shown:
                    shown = now.step
                    yield Progress("samples", done, total, 1, shown, request.steps)
        finally:
            now.is_abandoned = True
        return image.result()


@dataclass
class _Step:
    """The sampling step in progress, and whether nobody waits for the image any more."""

    step: int = 0
    is_abandoned: bool = False

    def note(self, step: int) -> None:
        self.step = step
