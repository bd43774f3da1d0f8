"""A webui's txt2img, with the traps that were measured on the real ones."""

from __future__ import annotations

import random
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from tests.stand_ins.webui.modules import module_of


class State(SimpleNamespace):
    """`shared.state`: the running job, and which buttons the user pressed meanwhile."""

    def __init__(self) -> None:
        super().__init__(job="", interrupted=False, stopping_generation=False, skipped=False, sampling_step=0)

    def begin(self, job: str) -> None:
        self.job, self.interrupted, self.stopping_generation, self.skipped = job, False, False, False

    def end(self) -> None:
        self.job = ""

    def interrupt(self) -> None:
        assert self.job, "the user's own images must not be interrupted"
        self.interrupted = True


class Processing(SimpleNamespace):
    """`StableDiffusionProcessingTxt2Img`: all images share one cache of encoded prompts."""

    is_closed = False
    cached_c: ClassVar[list[Any]] = [None, None]
    cached_uc: ClassVar[list[Any]] = [None, None]

    def __init__(self, **values: Any) -> None:
        super().__init__(cached_c=Processing.cached_c, cached_uc=Processing.cached_uc, override_settings={})
        self.__dict__.update(values)

    def close(self) -> None:
        self.is_closed = True


class Txt2Img:
    """The webui's txt2img, with its traps: it may load another checkpoint first, replaces an unknown sampler by its
    default one, ignores a LoRA that it does not find, returns an unfinished image when interrupted, and fails without
    a script runner, which may be empty. It seeds the global random numbers, keeps the prompt in `params.txt`, and
    leaves overridden options as they are unless its saved settings contain them.

    `during_image` is called during each image; `clip_skips` lists the setting that each image was made with.
    """

    names: tuple[str, ...] = ("DPM++ 2M", "Euler", "Euler a")

    def __init__(self, world: Any) -> None:
        self.world = world
        self.jobs: list[Processing] = []
        self.clip_skips: list[int] = []
        self.last_prompt = ""
        self.during_image: Any = lambda: None
        self.state = State()
        self.available: dict[str, object] = {}

    def modules(self) -> list[ModuleType]:
        names = self.names
        schedules = [("Automatic", "automatic", None), ("Karras", "karras", None), ("SGM Uniform", "sgm", ["SGM"])]
        schedulers = [SimpleNamespace(label=label, name=name, aliases=also) for label, name, also in schedules]
        return [
            module_of("modules.processing", StableDiffusionProcessingTxt2Img=Processing, process_images=self.process),
            module_of("modules.scripts", ScriptRunner=lambda: SimpleNamespace(alwayson_scripts=[])),
            module_of("modules.rng"),
            module_of(
                "modules.sd_samplers",
                all_samplers_map=dict.fromkeys(names),
                visible_sampler_names=lambda: list(names),
            ),
            module_of("modules.sd_schedulers", schedulers=schedulers),
        ]

    def process(self, job: Processing) -> Any:
        assert self.world.queue_lock.is_held, "the webui generates under its lock"
        assert self.state.job and not job.is_closed
        assert not list(job.scripts.alwayson_scripts), "the user's scripts are only for the user's own images"
        self.jobs.append(job)
        shared: Any = sys.modules["modules.shared"]
        stored = {name: shared.opts.data[name] for name in job.override_settings if name in shared.opts.data}
        shared.opts.data.update(job.override_settings)
        try:
            return self._image(job, shared)
        finally:
            shared.opts.data.update(stored)

    def _image(self, job: Processing, shared: Any) -> Any:
        self.clip_skips.append(shared.opts.CLIP_stop_at_last_layers)
        random.seed()
        np.random.seed(job.seed)
        torch.manual_seed(job.seed)
        sys.modules["modules.rng"].nv_rng = f"philox of {job.seed}"  # type: ignore[attr-defined]
        if not shared.cmd_opts.no_prompt_history:
            self.last_prompt = job.prompt
        job.cached_c[:] = job.cached_uc[:] = [job.prompt, "encoded"]
        loras = [name for name in re.findall(r"<lora:(.+?):1>", job.prompt) if name in self.available]
        image_hash = self.world.generate_unlocked(loras[0] if loras else "")
        self.during_image()
        colour = tuple(bytes.fromhex(image_hash[:6]))
        image = Image.new("RGB", (job.width, job.height), (0, 0, 0) if self.state.interrupted else colour)
        return SimpleNamespace(images=[image], infotexts=[f"{job.prompt}\nSampler: {job.sampler_name}"])


class OldProcessing(Processing):
    """As in Forge Classic, without a scheduler."""

    def __init__(self, **values: Any) -> None:
        if "scheduler" in values:
            raise TypeError("unexpected keyword argument 'scheduler'")
        super().__init__(**values)


class ClassicTxt2Img(Txt2Img):
    """Forge Classic's: no `modules.sd_schedulers`, every pair of sampler and schedule is a separate sampler."""

    names = ("DPM++ 2M Karras", "Euler a", "Euler")

    def modules(self) -> list[ModuleType]:
        names = self.names
        scripts = [one for one in super().modules() if one.__name__ in ("modules.scripts", "modules.rng")]
        samplers = {"all_samplers_map": dict.fromkeys(names), "visible_sampler_names": lambda: list(names)}
        processing = {"StableDiffusionProcessingTxt2Img": OldProcessing, "process_images": self.process}
        return [
            *scripts,
            module_of("modules.processing", **processing),
            module_of("modules.sd_samplers", **samplers),
        ]
