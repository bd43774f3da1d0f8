"""A checkpoint's parameters under the names of our modules, read one at a time: it is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import ModelSpec, add_text_model_prefix
from lib_lora_train.models.checkpoint import load_tensors
from lib_lora_train.models.graft import check_networks, parameter_view
from lib_lora_train.models.kinds.base import Network
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.model_files import read_checkpoint_info, read_contents
from lib_lora_train.models.weight_files import TensorPlace


@dataclass(frozen=True, eq=False)
class CheckpointParameters:
    """What a checkpoint is, its networks by label on the meta device, and where their tensors are."""

    path: Path
    name: str
    spec: ModelSpec
    networks: Mapping[str, Network]
    places: Mapping[str, TensorPlace]

    @property
    def unet(self) -> nn.Module:
        """The UNet, or the transformer in its place."""
        return self.networks["unet"].module

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders, in webui order."""
        return tuple(part.module for label, part in self.networks.items() if label.startswith("text_encoder"))

    def read(self, label: str, name: str) -> Tensor:
        """The parameter `name` of the network `label`, memory-mapped in the file's dtype, with our shape."""
        network = self.networks[label]
        source = network.source(name)
        place = self.places[network.prefix + source.name]
        shape = network.module.get_parameter(name).shape
        return parameter_view(load_tensors({name: place})[name], source, shape)


def read_parameters(path: Path) -> CheckpointParameters:
    """A checkpoint of a kind that can be trained, of which only the headers are read; ModelError for anything else."""
    info = read_checkpoint_info(path)
    places = add_text_model_prefix(read_contents(path).places)
    networks = tuple(kind_of(info.spec.architecture).networks(info.spec))
    try:
        check_networks(networks, {name: place.entry.shape for name, place in places.items()})
    except ModelError as reason:
        raise ModelError(f"{path.name}: {reason}") from None
    return CheckpointParameters(path, info.name, info.spec, {part.label: part for part in networks}, places)
