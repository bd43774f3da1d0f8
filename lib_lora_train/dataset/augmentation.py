"""Augmentation: the views of an image, each with its own crop, mirroring, colours and background.

An image has a fixed number of views. All are encoded before the run and cached by content; each sample draws one of
them. Encoding every sample again would cost more than the UNet's own forward pass and need the VAE during training.
The first view is always the unaugmented one, which validation uses.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from PIL import ImageColor

from lib_lora_train.config.concept_lists import not_a_colour, split_colours
from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.seeding import random_for
from lib_lora_train.dataset.buckets import Placement
from lib_lora_train.dataset.images import NO_TRANSFORM, WHITE, PixelTransform

MAX_HUE_SHIFT = 0.5  # of the strength, as a share of the colour circle: more turns skin green


@dataclass(frozen=True)
class View:
    """One view of an item. Mirroring comes before the crop, so the crop is measured on the mirrored image.

    `background` names the colour behind transparent parts; "" for opaque images.
    """

    item: int
    placement: Placement
    transform: PixelTransform = NO_TRANSFORM
    background: str = ""


@dataclass(frozen=True)
class Colour:
    """A background colour: its name as written, and RGB."""

    name: str
    rgb: tuple[int, int, int]


def parse_background_colours(text: str) -> tuple[Colour, ...]:
    """The colours of a list such as `white, #808080`; white for "". DataError for an unknown name."""
    try:
        colours = [_parse_colour(name) for name in split_colours(text)]
    except ValueError as error:
        raise DataError(str(error)) from None
    return tuple(colours) or (Colour("white", WHITE),)


def _parse_colour(name: str) -> Colour:
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ValueError(not_a_colour(name)) from None
    return Colour(name, (red, green, blue))


def make_views(item: int, placement: Placement, concept: Concept, *, content: str, has_alpha: bool) -> tuple[View, ...]:
    """All views of an image, the unaugmented one first. The same content gives the same views in every run.

    Random crops and colour jitter give `augment_variants` views, `alpha_background` at least one per colour, and `flip`
    doubles the number.
    """
    colours = parse_background_colours(concept.alpha_background) if has_alpha else ()
    changes = concept.random_crop or concept.colour_jitter > 0
    count = max(concept.augment_variants if changes else 1, len(colours))
    views = []
    for number in range(count):
        view = View(item, placement)
        if number and changes:
            view = _augment(view, concept, random_for(0, "view", int(content[:15], 16), number))
        if colours:
            colour = colours[number % len(colours)]
            view = replace(view, transform=replace(view.transform, background=colour.rgb), background=colour.name)
        views.append(view)
    return tuple(dict.fromkeys([*views, *(map(mirror_view, views) if concept.flip else ())]))


def mirror_view(view: View) -> View:
    """The view mirrored: the same part of the image, with the crop measured from the other side."""
    place = view.placement
    left = place.resize_width - place.width - place.left
    return replace(view, placement=replace(place, left=left), transform=replace(view.transform, is_mirrored=True))


def _augment(view: View, concept: Concept, generator: random.Random) -> View:
    """A random crop and colours changed by up to the strength. The same numbers are drawn for all settings."""
    across, down, *colours = (generator.random() for _ in range(6))
    place, transform, strength = view.placement, view.transform, concept.colour_jitter
    if concept.random_crop:
        left = int(across * (place.resize_width - place.width + 1))
        top = int(down * (place.resize_height - place.height + 1))
        place = replace(place, left=left, top=top)
    if strength:
        brightness, contrast, saturation, hue = (2 * number - 1 for number in colours)
        factors = (1 + strength * brightness, 1 + strength * contrast, 1 + strength * saturation)
        transform = replace(transform, jitter=(*factors, strength * MAX_HUE_SHIFT * hue / 2))
    return replace(view, placement=place, transform=transform)


def add_background_tag(text: str, view: View, concept: Concept) -> str:
    """The caption with the tag of the view's background, if the concept has `tag_background` on."""
    tag = make_background_tag(view.background) if concept.tag_background else ""
    if not tag or tag in text.lower():
        return text
    return f"{text}, {tag}" if text else tag


def make_background_tag(name: str) -> str:
    """`white` → `white background`; "" for a colour code."""
    return f"{name.lower()} background" if name.isalpha() else ""


def find_asymmetric_word(caption: str) -> str:
    """The first word of a caption that mirroring would make wrong (left, text, scar …); "" for none."""
    text = caption.lower().replace("_", " ")
    phrase = next((phrase for phrase in _ASYMMETRIC_PHRASES if phrase in text), "")
    return phrase or next((word for word in re.findall(r"[^\W_][\w-]*", text) if word in _ASYMMETRIC), "")


_ASYMMETRIC = frozenset(
    re.findall(
        r"[\w-]+",
        "asymmetric asymmetrical eyepatch heterochromia left left-handed letter letters logo logos mole monocle "
        "one-eyed right right-handed scar scars sidecut sign signs signature subtitle subtitled tattoo "
        "tattoos text watermark",
    )
)
_ASYMMETRIC_PHRASES = ("hair over one eye", "side ponytail", "one side up", "side braid", "speech bubble")
