"""Writes docs/families-in-webuis.md from the table in `lib_lora_train/config/family_support.py`.

python -m tools.make_family_page
"""

from __future__ import annotations

from pathlib import Path

from lib_lora_train.config.family_support import FORMS, PROGRAMS, support_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families-in-webuis.md"

_HEAD = """# Who reads which family

<!-- Made by tools/make_family_page.py from lib_lora_train/config/family_support.py. Do not edit. -->

What each program does with a LoRA file of each form, measured with files that this trainer wrote: the weights that the
program computes (for stable-diffusion.cpp: its image), compared with the update in training. *right* means equal but
for rounding. [The webui page](webui.md#lora-files-of-every-family-in-the-real-webuis) has the numbers for A1111 and
Forge; Forge Neo was measured at release 2.26. Of reForge (3b56b26) and Forge Classic (1f95d71) the functions that load
LoRAs were run alone, on the tiny SD1 model in fp32 at strengths 1, 0.5, 2 and -1 (2026-11-29). For DoRA per output
channel the formulas of A1111, Forge, ComfyUI and InvokeAI 6.14.2 were run on files of LyCORIS 4.1.3 for the tiny model,
with updates of 1 to 30% of W; Forge Neo's and reForge's are the same as Forge's.

The warnings before a run and the buttons in Results come from this table. A file that your program does not read as
trained can be converted: to `diff`, which is exact but large, or to a LoRA, whose loss is measured. With
`files_for_webui` a run saves files that the webui in use reads (stand-alone: that all webuis read): LoKr with Tucker's
form as LoKr without it, every other form as `diff`. The trained form is kept in the run's folder.

"""


def family_page() -> str:
    """The whole page as Markdown."""
    rows = [f"| form | {' | '.join(PROGRAMS)} |", "|---" * (len(PROGRAMS) + 1) + "|"]
    for form, title in FORMS.items():
        rows.append(f"| {title} | {' | '.join(str(support_of(name, form)) for name in PROGRAMS)} |")
    return _HEAD + "\n".join(rows) + "\n"


def main() -> None:
    PAGE.write_text(family_page(), encoding="utf-8")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
