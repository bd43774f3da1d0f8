"""Which layers of cross-attention a heat map is made of; `evaluation/heat_maps.py` makes it."""

from __future__ import annotations

from typing import Literal, get_args

HeatMapLayers = Literal["objects", "all"]
"""Those that show objects, which is sharper, or all, as the authors of DAAM take them."""

HEAT_MAP_LAYERS: tuple[HeatMapLayers, ...] = get_args(HeatMapLayers)
"""The page and the command line begin with the first."""
