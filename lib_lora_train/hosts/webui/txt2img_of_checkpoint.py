"""One of the webui's samplers, tied to the checkpoint that a run is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, GenerationWatch
from lib_lora_train.hosts.webui.loaded_model import ModelIdentity

if TYPE_CHECKING:
    from lib_lora_train.hosts.webui.host import WebuiHost


@dataclass(frozen=True, eq=False)
class WebuiTxt2Img:
    """Implements `hosts.host.Txt2Img`."""

    host: WebuiHost
    sampler: str
    model_name: str
    identity: ModelIdentity

    def generate(self, request: GenerationRequest, watch: GenerationWatch | None = None) -> GeneratedImage:
        """One image; errors as `hosts.host.Txt2Img.generate`."""
        return self.host.generate(request, self.sampler, identity=self.identity, name=self.model_name, watch=watch)
