"""Images drawn by the webui itself: its samplers, its reading of the prompt, its loading of LoRA files.

What is called here has the same names in A1111 1.10 and all that descend from it. All but `sampler_names` and
`sampler_and_scheduler` is called under the queue lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from lib_lora_train.core.errors import HostError, InterruptedDrawing
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest

_SHOWN_NAMES = 8


def sampler_names() -> tuple[str, ...]:
    """The samplers the webui offers, those hidden in its settings left out."""
    from modules import sd_samplers

    return tuple(str(name) for name in sd_samplers.visible_sampler_names())


def sampler_and_scheduler(name: str) -> tuple[str, str]:
    """`DPM++ 2M Karras` → ("DPM++ 2M", "Karras"), `Euler` → ("Euler", "Automatic").

    Forge Classic has no schedulers of their own: there each name is a sampler's, and the scheduler "".
    HostError for a name that the webui would silently take for its first sampler.
    """
    from modules import sd_samplers

    known, schedulers = sd_samplers.all_samplers_map, _schedulers()
    if name in known:
        return name, "Automatic" if schedulers else ""
    for scheduler in schedulers:
        for ending in (scheduler.label, scheduler.name, *(scheduler.aliases or ())):
            sampler = name.removesuffix(f" {ending}")
            if sampler != name and sampler in known:
                return sampler, str(scheduler.label)
    shown = ", ".join(sampler_names()[:_SHOWN_NAMES])
    raise HostError(f"The webui has no sampler called {name}. It has {shown} and others; choose one of them.")


def _schedulers() -> tuple[Any, ...]:
    try:
        from modules import sd_schedulers
    except ImportError:
        return ()
    return tuple(sd_schedulers.schedulers)


def paint(order: GenerationRequest, sampler: str) -> GeneratedImage:
    """The image as the webui draws it for anybody, but not saved among the user's own.

    Raises InterruptedDrawing, and HostError with the webui's reason when it fails.
    """
    from modules import processing, scripts, shared

    name, scheduler = sampler_and_scheduler(sampler)
    values: dict[str, Any] = {
        "prompt": f"{order.prompt} <lora:{order.lora}:1>" if order.lora else order.prompt,
        "negative_prompt": order.negative,
        "seed": order.seed,
        "steps": order.steps,
        "cfg_scale": order.cfg,
        "width": order.width,
        "height": order.height,
        "sampler_name": name,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
        "override_settings": {"CLIP_stop_at_last_layers": order.clip_skip},
    }
    if scheduler:
        values["scheduler"] = scheduler
    asked = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, **values)
    asked.scripts = scripts.ScriptRunner()  # one without scripts: reForge fails where there is none
    with closing(asked), as_a_job(shared):
        done = _processed(asked)
        if shared.state.interrupted or shared.state.stopping_generation or shared.state.skipped:
            raise InterruptedDrawing("The webui's Interrupt was pressed while it drew images for this run.")
    infotexts = getattr(done, "infotexts", None) or [""]
    return GeneratedImage(done.images[0].convert("RGB"), str(infotexts[0]))


@contextmanager
def as_a_job(shared: Any) -> Iterator[None]:
    """What the webui does around each of its generations; beginning one forgets earlier interruptions."""
    shared.state.begin(job="LoRA Train")
    try:
        yield
    finally:
        shared.state.end()
        shared.total_tqdm.clear()


def _processed(asked: Any) -> Any:
    """The webui's answer; what a graphics card or a number fails with is told as a HostError."""
    from modules import devices, processing

    failures = (RuntimeError, ValueError, OSError, getattr(devices, "NansException", RuntimeError))
    try:
        done = processing.process_images(asked)
    except failures as error:
        raise HostError(f"The webui could not draw the image ({error}). Its console says more.") from error
    if not done.images:
        raise InterruptedDrawing("The webui drew no image; Interrupt was pressed.")
    return done


def require_lora(networks: Any, name: str) -> None:
    """HostError if the webui would draw without the LoRA file `name`, because it does not find it."""
    if networks is None:
        raise HostError("The webui's own LoRA extension is switched off: it cannot draw with LoRA files.")
    if name not in networks.available_networks:
        networks.list_available_networks()
    if name not in networks.available_networks:
        raise HostError(f"The webui does not find {name}: the file does not lie in its LoRA folder.")
