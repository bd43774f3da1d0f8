"""What each program does with a LoRA file of each form: the one table for the docs, the warnings and the buttons.

Every cell was measured: the weights that the program computes (or, for stable-diffusion.cpp, its image), compared with
the update that training computed. A pair that is not in the table was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lib_lora_train.config.train_config import TrainConfig

Effect = Literal["right", "ignored", "partly", "wrong", "fails", "not measured"]
EFFECT_WORDS: Mapping[str, str] = {
    "right": "has the effect it had in training",
    "ignored": "has no effect",
    "partly": "has only part of its effect",
    "wrong": "has a wrong effect",
    "fails": "makes it fail",
}


@dataclass(frozen=True)
class Support:
    """What a program does with a form; `detail` says how it shows, or by how much it is wrong."""

    effect: Effect
    detail: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the file has the effect that it had in training."""
        return self.effect == "right"

    @property
    def is_known_bad(self) -> bool:
        """Whether it was measured that the file does not have that effect."""
        return self.effect not in ("right", "not measured")

    def __str__(self) -> str:
        return f"{self.effect}: {self.detail}" if self.detail else self.effect


WEBUIS = ("A1111", "Forge", "Forge Neo", "reForge", "Forge Classic")
PROGRAMS = (*WEBUIS, "ComfyUI", "InvokeAI", "diffusers", "stable-diffusion.cpp")
FORMS: Mapping[str, str] = {
    "lora": "LoRA",
    "locon": "LoCon (LoRA with convolutions)",
    "locon_tucker": "LoCon, Tucker",
    "dora": "LoRA or LoCon with DoRA",
    "dora_output": "LoRA or LoCon with DoRA per output channel (files of other trainers)",
    "scalar": "LoCon with `scalar`",
    "dylora": "DyLoRA",
    "loha": "LoHa",
    "loha_tucker": "LoHa, Tucker",
    "loha_dora": "LoHa with DoRA",
    "loha_dora_output": "LoHa with DoRA per output channel (files of LyCORIS)",
    "lokr": "LoKr",
    "lokr_full": "LoKr, `full_matrix`",
    "lokr_tucker": "LoKr, Tucker",
    "lokr_dora": "LoKr with DoRA",
    "lokr_dora_output": "LoKr with DoRA per output channel (files of LyCORIS and OneTrainer)",
    "glora": "GLoRA",
    "glora_conv": "GLoRA of convolutions (files of LyCORIS)",
    "ia3": "(IA)³",
    "ia3_conv": "(IA)³ of convolutions (files of LyCORIS)",
    "oft": "OFT",
    "oft_constraint": "OFT with `constraint`",
    "oft_rescaled": "OFT, rescaled",
    "boft": "BOFT",
    "boft_constraint": "BOFT with `constraint`",
    "boft_rescaled": "BOFT, rescaled",
    "full": "native (`diff`)",
    "full_norm": "native, with norms",
}
_RIGHT = Support("right")
_UNKNOWN = Support("not measured")
_LOW_RANK = ("lora", "locon", "locon_tucker", "dora", "scalar", "dylora", "loha", "loha_tucker", "loha_dora", "lokr")
_EXACT = ("lokr_full", "lokr_dora", "glora", "full", "full_norm")
_OUTPUT_DORA = ("dora_output", "loha_dora_output", "lokr_dora_output")
_ROTATIONS = ("oft", "oft_constraint", "oft_rescaled", "boft", "boft_constraint", "boft_rescaled")


def _all(forms: tuple[str, ...], support: Support) -> dict[str, Support]:
    return dict.fromkeys(forms, support)


_SILENT = Support("ignored", "only a line in the console")
_VALUE_ERROR = Support("fails", "ValueError, nothing of the file is loaded")
_SQUARED = Support("wrong", "right at strength 1, ×¼ at 0.5 and ×4 at 2")
_ONLY_AT_1 = Support("wrong", "right at strength 1 only")
_WRONG_AXIS = Support("wrong", "by more than the whole update, silently: it takes the norms of the inputs")
_BASE_NORMS = Support("wrong", "by 2 to 28%, silently: it takes the norms of W instead of W + ΔW")

SUPPORT: Mapping[str, Mapping[str, Support]] = {
    "A1111": _all((*_LOW_RANK, *_EXACT, "lokr_tucker", "ia3", "oft", "boft"), _RIGHT)
    | _all(("oft_constraint", "oft_rescaled"), Support("right", "measured with both at once"))
    | _all(_OUTPUT_DORA, _WRONG_AXIS)
    | _all(("glora_conv", "ia3_conv"), Support("partly", "its convolutions are not read")),
    "Forge": _all((*_LOW_RANK, *_EXACT), _RIGHT)
    | _all(_OUTPUT_DORA, _BASE_NORMS)
    | _all(("ia3", *_ROTATIONS[:4]), _SILENT)
    | {"lokr_tucker": Support("fails", "the generation stops with an error")},
    "Forge Neo": _all((*_LOW_RANK, *_EXACT), _RIGHT)
    | _all(_OUTPUT_DORA, _BASE_NORMS)
    | {
        "lokr_tucker": Support("partly", "its 3×3 convolutions are left out, only a line in the console"),
        "ia3": Support("ignored", "without a word"),
        "oft": _SQUARED,
        "boft": _ONLY_AT_1,
        "boft_rescaled": _ONLY_AT_1,
        "oft_constraint": Support("wrong", "by 0.99 of the update"),
        "boft_constraint": Support("wrong", "by 1.0 of the update"),
        "oft_rescaled": Support("wrong", "by 0.42 of the update: the rescaling is not applied"),
    },
    "reForge": _all((*_LOW_RANK, *_EXACT), _RIGHT)
    | _all(_OUTPUT_DORA, _BASE_NORMS)
    | {
        "lokr_tucker": Support("partly", "its 3×3 convolutions are left out, with a line in the console"),
        "ia3": Support("ignored", "a warning per key"),
        "oft": _SQUARED,
        "oft_constraint": Support("wrong", "by 1.0 of the update"),
        "oft_rescaled": Support("wrong", "by 0.5 of the update: the rescaling is not applied"),
        "boft": _ONLY_AT_1,
        "boft_constraint": Support("wrong", "by 1.0 of the update"),
        "boft_rescaled": _ONLY_AT_1,
    },
    "Forge Classic": _all((*_LOW_RANK, *_EXACT), _RIGHT)
    | _all(("dora", "loha_dora", "lokr_dora", *_OUTPUT_DORA, "ia3", *_ROTATIONS), _SILENT)
    | {"lokr_tucker": Support("partly", "its 3×3 convolutions are left out, with a line in the console")},
    "ComfyUI": _all((*_LOW_RANK, *_EXACT), _RIGHT)
    | _all(_OUTPUT_DORA, _BASE_NORMS)
    | {
        "lokr_tucker": Support("partly", "50 convolutions are left out, with a line in the console"),
        "ia3": Support("ignored", "a warning per key"),
        "oft": _SQUARED,
        "boft": _ONLY_AT_1,
        "oft_constraint": Support("wrong", "about no effect"),
        "boft_constraint": Support("wrong", "about no effect"),
        "oft_rescaled": Support("wrong", "by 0.7: the rescaling is not applied"),
    },
    "InvokeAI": _all((*_LOW_RANK, "lokr_full", "lokr_tucker", "full"), _RIGHT)
    | {
        "dora_output": _WRONG_AXIS,
        "lokr": Support("right", "but not recognised when it is imported"),
        "ia3": Support("right", "but a UNet-only file is not recognised"),
        "full_norm": Support("right", "but fails on the CPU and in fp8"),
    }
    | _all(("loha_dora", "lokr_dora", *_OUTPUT_DORA[1:]), Support("fails", "KeyError, whole file"))
    | _all(("glora", *_ROTATIONS[:-1]), Support("fails", "an error, whole file")),
    "diffusers": _all(("lora", "locon", "scalar", "dylora"), _RIGHT)
    | _all(("locon_tucker", "loha", "loha_tucker", "loha_dora", "lokr", "lokr_full", "lokr_tucker"), _VALUE_ERROR)
    | _all(("lokr_dora", *_OUTPUT_DORA[1:], "glora", "ia3", *_ROTATIONS[:-1], "full", "full_norm"), _VALUE_ERROR)
    | {"dora": Support("wrong", "the scale is dropped: by up to 1.5, with a line in the console")}
    | {"dora_output": Support("wrong", "the scale is dropped: by up to 0.45, with a line in the console")},
    "stable-diffusion.cpp": {
        "lora": Support("right", "within 0.4%"),
        "locon_tucker": Support("wrong", "by 23%, silently"),
        "dora": Support("wrong", "its scales are not used"),
        "dora_output": Support("wrong", "its scales are not used"),
        "loha": Support("right", "within 0.5%"),
        "loha_tucker": Support("wrong", "by 5%, silently"),
        "lokr": Support("right", "within 0.6%"),
        "lokr_full": Support("wrong", "by more than 100%, silently"),
        "glora": Support("ignored", "with a message"),
        "ia3": Support("fails", "with a message"),
        "oft": Support("ignored", "with a message"),
        "boft": Support("ignored", "with a message"),
        "full": Support("right", "within 0.2%"),
        "full_norm": Support("partly", "norms are not used, with a message"),
    },
}

_SAME_UPDATE = {"lokr_tucker": "lokr"}
"""Small forms that can hold exactly the update of another one; `full` holds any."""


def support_of(program: str, form: str) -> Support:
    """What the program does with the form; a name with a release (`Forge Neo 2.26`) is the same program."""
    return SUPPORT.get(program_name(program), {}).get(form, _UNKNOWN)


def program_name(host: str) -> str:
    """The program's name in the table, from a host's own name; "" if it is not in the table."""
    if host.startswith("AUTOMATIC1111"):
        return "A1111"
    return max((name for name in PROGRAMS if host.startswith(name)), key=len, default="")


DORA_FORMS: Mapping[str, str] = {"lora": "dora", "loha": "loha_dora", "lokr": "lokr_dora"}
TUCKER_FORMS: Mapping[str, str] = {"lora": "locon_tucker", "loha": "loha_tucker", "lokr": "lokr_tucker"}
"""The form of a family's files with DoRA, and with Tucker on convolutions."""
OUTPUT_DORA_FORMS: Mapping[str, str] = {family: f"{form}_output" for family, form in DORA_FORMS.items()}
"""The same with DoRA per output channel, which only runs that continue such a file write."""


def form_of(config: TrainConfig) -> str:
    """The form of the files that these settings write, a key of FORMS; the family itself if they do not fit it."""
    family, has_kernels = config.family, config.targets in ("all", "full")
    if family in ("oft", "boft"):
        return rotation_form(family, is_bounded=config.constraint > 0, is_rescaled=config.rescaled)
    if family == "full":
        return "full_norm" if config.train_norm else "full"
    if family in ("dylora", "glora", "ia3"):
        return family
    if config.dora:
        return DORA_FORMS.get(family, family)
    if config.tucker and has_kernels:
        return TUCKER_FORMS.get(family, family)
    if family == "lokr":
        return "lokr_full" if config.full_matrix else "lokr"
    if family == "lora":
        return "scalar" if config.scalar else "locon" if has_kernels else "lora"
    return family


def rotation_form(family: str, *, is_bounded: bool, is_rescaled: bool) -> str:
    """The form of an OFT or BOFT layer."""
    return f"{family}_constraint" if is_bounded else f"{family}_rescaled" if is_rescaled else family


def bad_webuis(form: str) -> Iterator[tuple[str, Support]]:
    """The webuis in which a file of this form is known not to have its effect.

    A webui that ignores a family ignores its variants, which were not all measured.
    """
    for name in WEBUIS:
        support = support_of(name, form)
        plain = support_of(name, form.partition("_")[0])
        if support.is_known_bad:
            yield name, support
        elif support == _UNKNOWN and plain.effect == "ignored":
            yield name, plain


def is_misread(program: str, form: str) -> bool:
    """Whether a file of this form is known not to have its effect in this program.

    For a program that was not measured, or none: whether any webui is known to misread it.
    """
    bad = dict(bad_webuis(form))
    return program_name(program) in bad or (bool(bad) and not support_of(program, form).is_right)


def readable_form(program: str, form: str) -> str:
    """The form that holds exactly the update of `form` and that the program reads: itself, a small one, or `full`."""
    candidates = (form, _SAME_UPDATE.get(form, "full"))
    return next((one for one in candidates if not is_misread(program, one)), "full")


def conversions_for(program: str, form: str) -> tuple[str, ...]:
    """What to convert a file of this form to for this program, the exact form first; () if it reads the file."""
    return ("diff", "lora") if is_misread(program, form) else ()
