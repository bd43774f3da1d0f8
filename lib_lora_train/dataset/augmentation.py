"""The views of an image: each crop, mirroring, colouring and background in which training sees it.

Augmentation and caching agree because an image has a fixed number of views, all encoded before the run and found again
by content; a draw chooses one. Encoding afresh for every showing would cost more than the UNet's own forward pass and
need the VAE in every turn. The first view is always the plain one: it is what evaluations look at.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from PIL import ImageColor

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.seeding import random_for
from lib_lora_train.dataset.buckets import Placement
from lib_lora_train.dataset.images import PLAIN, WHITE, Look

MOST_HUE = 0.5  # of the strength, as a share of the whole circle: stronger turns skin green


@dataclass(frozen=True)
class View:
    """One view of an item; a mirrored image is mirrored first, so that its crop is that of the mirrored one.

    `background` is the colour's name where it is put behind transparent parts, "" for opaque images.
    """

    item: int
    placement: Placement
    look: Look = PLAIN
    background: str = ""


@dataclass(frozen=True)
class Colour:
    """A background colour: its name as written, and RGB."""

    name: str
    rgb: tuple[int, int, int]


def background_colours(text: str) -> tuple[Colour, ...]:
    """The colours of a list such as `white, #808080`, white for ""; DataError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    colours = []
    for name in names:
        try:
            red, green, blue = ImageColor.getrgb(name)[:3]
        except ValueError:
            raise DataError(f"{name!r} is no colour. Write a name such as white or grey, or #808080.") from None
        colours.append(Colour(name, (red, green, blue)))
    return tuple(colours) or (Colour("white", WHITE),)


def views_of(item: int, placement: Placement, concept: Concept, *, content: str, has_alpha: bool) -> tuple[View, ...]:
    """All views of an image, the plain one first; the same for the same content in every run.

    Random crops and colour jitter give `augment_variants` views, backgrounds one for each colour at least, mirroring
    twice as many.
    """
    colours = background_colours(concept.alpha_background) if has_alpha else ()
    changes = concept.random_crop or concept.colour_jitter > 0
    count = max(concept.augment_variants if changes else 1, len(colours))
    views = []
    for number in range(count):
        view = View(item, placement)
        if number and changes:
            view = _varied(view, concept, random_for(0, "view", int(content[:15], 16), number))
        if colours:
            colour = colours[number % len(colours)]
            view = replace(view, look=replace(view.look, background=colour.rgb), background=colour.name)
        views.append(view)
    return tuple(dict.fromkeys([*views, *(map(mirrored, views) if concept.flip else ())]))


def mirrored(view: View) -> View:
    """The mirror image of a view: the same part of the image, whose crop begins at the other side now."""
    place = view.placement
    left = place.resize_width - place.width - place.left
    return replace(view, placement=replace(place, left=left), look=replace(view.look, is_mirrored=True))


def _varied(view: View, concept: Concept, luck: random.Random) -> View:
    """A crop anywhere, and colours up to the strength away. All numbers are drawn whatever the settings."""
    across, down, *colours = (luck.random() for _ in range(6))
    place, look, strength = view.placement, view.look, concept.colour_jitter
    if concept.random_crop:
        left = int(across * (place.resize_width - place.width + 1))
        top = int(down * (place.resize_height - place.height + 1))
        place = replace(place, left=left, top=top)
    if strength:
        brightness, contrast, saturation, hue = (2 * one - 1 for one in colours)
        factors = (1 + strength * brightness, 1 + strength * contrast, 1 + strength * saturation)
        look = replace(look, jitter=(*factors, strength * MOST_HUE * hue / 2))
    return replace(view, placement=place, look=look)


def tagged(text: str, view: View, concept: Concept) -> str:
    """The caption with the background's tag, where the concept wants it and the view has one."""
    tag = background_tag(view.background) if concept.tag_background else ""
    if not tag or tag in text.lower():
        return text
    return f"{text}, {tag}" if text else tag


def background_tag(name: str) -> str:
    """`white` → `white background`; "" for what is no word."""
    return f"{name.lower()} background" if name.isalpha() else ""


def asymmetric_word(caption: str) -> str:
    """The first word of a caption that names something which mirroring makes wrong, "" for none."""
    words = re.findall(r"[^\W_][\w-]*?(?=[^\w-]|_|$)", caption.lower())
    return next((word for word in words if word in _ASYMMETRIC), "")


_ASYMMETRIC = frozenset(
    re.findall(
        r"[\w-]+",
        "asymmetrical eyepatch heterochromia left letter letters logo mole monocle one-eyed right scar scars sidecut "
        "sign signature tattoo text watermark",
    )
)
