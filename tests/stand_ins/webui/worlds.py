"""Stand-ins for the webuis' own modules, with the traps that were measured on the real ones.

Each world holds a model of real tensors and the modules that our hosts import. `generate` changes the weights as a
generation does and returns a hash of the weights used for the image: equal hashes mean equal images.
"""

from __future__ import annotations

from typing import TypeAlias

from lib_lora_train.hosts.webui.a1111 import A1111
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.neo import ForgeNeo
from lib_lora_train.hosts.webui.reforge import ForgeClassic, LdmPatched
from tests.stand_ins.webui.a1111 import A1111World
from tests.stand_ins.webui.anima import AnimaWorld
from tests.stand_ins.webui.forge import ForgeWorld
from tests.stand_ins.webui.neo import NeoWorld
from tests.stand_ins.webui.reforge import ClassicWorld, ReforgeWorld

World: TypeAlias = "A1111World | ForgeWorld"


WORLDS: dict[str, type[World]] = {
    "a1111": A1111World,
    "forge": ForgeWorld,
    "neo": NeoWorld,
    "reforge": ReforgeWorld,
    "classic": ClassicWorld,
}


def host_in(world: World) -> WebuiHost:
    """Our host for this world."""
    kinds: dict[type, type] = {
        A1111World: A1111,
        ForgeWorld: Forge,
        NeoWorld: ForgeNeo,
        AnimaWorld: ForgeNeo,
        ReforgeWorld: LdmPatched,
        ClassicWorld: ForgeClassic,
    }
    return WebuiHost(kinds[type(world)]())
