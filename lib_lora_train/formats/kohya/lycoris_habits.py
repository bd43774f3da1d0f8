"""What LyCORIS does with settings beyond what they say, where it trains something else than the same settings here."""

from __future__ import annotations

from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.formats.kohya.import_state import NOT_NEEDED, ImportState, parse_flag, parse_number
from lib_lora_train.formats.kohya.network_kinds import NetworkKind

_LONGEST_SMALL_SIDE = 80  # of LoKr's small matrices in SD1, SD2 and SDXL, with factor -1


def report_lycoris_habits(state: ImportState, kind: NetworkKind) -> None:
    """Hints and warnings on a LyCORIS network; none for kohya's own."""
    if kind.is_lycoris:
        _decomposed_small_matrix(state, kind)
        _norm_of_dora(state, kind)


def _decomposed_small_matrix(state: ImportState, kind: NetworkKind) -> None:
    """LyCORIS takes the text "False" for on, and the GUI always passes it on."""
    given = state.value("decompose_both")
    if kind.family != "lokr" or (given is None and state.source != "gui") or parse_flag(given):
        return
    rank = parse_number(state.value("network_dim"))
    factor = int(parse_number(state.value("factor")) or -1)
    longest = factor if factor > 0 else _LONGEST_SMALL_SIDE
    if rank is not None and rank < longest / 2:
        text = "is off, as in the file. LyCORIS takes it for on at this rank: turn it on for the same network."
        state.hint("decompose_both", text)


def _norm_of_dora(state: ImportState, kind: NetworkKind) -> None:
    """DoRA's norm is over outputs in LyCORIS, unless wd_on_output is off; here over inputs, as webuis read it."""
    on_output = state.pop("wd_on_output")
    if not parse_flag(state.value("dora_wd")) or kind.family not in families_with("dora"):
        if on_output is not None:
            state.ignore("wd_on_output", on_output, f"{NOT_NEEDED}: it is for DoRA")
        return
    if on_output is None or parse_flag(on_output):
        if on_output is not None:
            state.ignore("wd_on_output", on_output, "is not available: the norm is always over inputs here")
        text = "takes the norm over inputs, as webuis read it. LyCORIS takes it over outputs since version 3.2."
        state.warn("dora", text)
