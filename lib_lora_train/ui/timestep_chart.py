"""The chart of the drawn timesteps, which JavaScript moves below the setting."""

from __future__ import annotations

from lib_lora_train.config.timestep_shares import timestep_at, timestep_shares
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.web.markup import text

_BARS = 50
_WIDTH, _HEIGHT = 300, 48  # of the SVG's coordinates; the page scales it


def timestep_chart(config: TrainConfig) -> str:
    """HTML with bars from timestep 0 to 1000, and where the middle half of the draws is; "" for an empty range."""
    if config.min_timestep >= config.max_timestep:
        return ""
    shares = timestep_shares(config, _BARS)
    first, middle, last = (round(timestep_at(config, share)) for share in (0.25, 0.5, 0.75))
    caption = f"Half of the draws are from {first} to {last}, half below {middle}."
    bars = "".join(_bar(number, share / max(shares)) for number, share in enumerate(shares))
    return (
        f"<div data-lt='timesteps' class='lt-hidden'><figure class='lt-timesteps'>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' preserveAspectRatio='none' role='img' aria-label='{text(caption)}'>"
        f"{bars}</svg>"
        f"<figcaption><span>0: details</span><span>1000: noise</span><p>{text(caption)}</p></figcaption>"
        f"</figure></div>"
    )


def _bar(number: int, height: float) -> str:
    """One bar; `height` 0…1."""
    width, tall = _WIDTH / _BARS, _HEIGHT * height
    return f"<rect x='{number * width:g}' y='{_HEIGHT - tall:.2f}' width='{width - 1:g}' height='{tall:.2f}'></rect>"
