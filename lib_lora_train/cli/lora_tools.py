"""The commands for finished LoRA files: `check`, `metadata`, `convert`, `resize`, `extract` and `merge`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.output import add_output, output_path
from lib_lora_train.config.merge_methods import METHODS
from lib_lora_train.config.settings.network import TARGETS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count
from lib_lora_train.lora_tools.merge_options import MergeOptions
from lib_lora_train.lora_tools.metadata_fields import FIELDS

if TYPE_CHECKING:
    from lib_lora_train.lora_tools.rank_rule import RankRule

EXIT_BROKEN = 2
_ROUNDING = 5e-3  # relative to the update: more than rounding to 16 bit loses

_RULES = {
    "sv_ratio": "singular values above 1/X of the largest",
    "sv_cumulative": "the largest singular values with the share X of the sum of all",
    "sv_fro": "the largest singular values with the share X of the layer's Frobenius norm",
}


def add_lora_tools(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands for finished LoRA files."""
    summary = "Show what a LoRA file of any family contains, or what is wrong with a settings file."
    check = command(commands, "check", run_check, summary)
    check.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file, or settings (.toml)")
    check.epilog = f"exit status: 0, or {EXIT_BROKEN} if the file cannot be used, such as for an unknown setting"

    converter = command(commands, "convert", run_convert, "Convert a LoRA file of any family for every webui.")
    converter.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")
    converter.add_argument(
        "--to", choices=("lora", "diff"), default="lora", help="a LoRA or the exact difference (large)"
    )
    converter.add_argument("--rank", type=int, default=16, help="rank of the LoRA (default: 16)")
    converter.add_argument("--ckpt", default="", metavar="FILE", help="its checkpoint (default: the tiny model)")
    _add_precision(converter)
    add_output(converter, "FILE-rank16 or similar")

    resizer = command(commands, "resize", run_resize, "Write a LoRA with a lower rank; needs no checkpoint.")
    resizer.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file of plain LoRA or LoCon layers")
    _add_rank_rule(resizer)
    _add_precision(resizer)
    add_output(resizer, "FILE-rank16 or similar")

    _add_extract(commands, command)
    _add_metadata(commands, command)
    _add_merge(commands, command)


def _add_extract(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    extractor = command(commands, "extract", run_extract, "Write the difference of two checkpoints as a LoRA.")
    extractor.add_argument("base", type=Path, metavar="BASE", help="the checkpoint that the other was trained from")
    extractor.add_argument("tuned", type=Path, metavar="TUNED", help="the fine-tuned checkpoint")
    _add_rank_rule(extractor)
    extractor.add_argument(
        "--targets", choices=TARGETS, default="all", help="layers, as in the settings (default: all, with convolutions)"
    )
    extractor.add_argument("--unet-only", action="store_true", help="leave the text encoders out")
    extractor.add_argument(
        "--clamp-quantile",
        type=float,
        default=1.0,
        metavar="Q",
        help="cut larger values (default: 1, none)",
    )
    _add_precision(extractor)
    add_output(extractor, "TUNED-rank16 or similar")


def _add_metadata(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    editor = command(commands, "metadata", run_metadata, "Show a LoRA file's metadata, or write it with other ones.")
    editor.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")
    for name in FIELDS:
        editor.add_argument(f"--{name}", metavar="TEXT", help=f"set the {name} (ModelSpec)")
    editor.add_argument("--preview", type=Path, metavar="IMAGE", help="set the preview image")
    editor.add_argument("--strip", action="store_true", help="reduce paths to file names, which removes user names")
    editor.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="set any entries; no value removes one"
    )
    add_output(editor, "FILE-edited")


def _add_merge(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    merger = command(commands, "merge", run_merge, "Merge LoRA files of any family into one file or a checkpoint.")
    merger.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".safetensors files")
    merger.add_argument(
        "--weights", type=float, nargs="+", default=[], metavar="W", help="one weight per file (default: 1)"
    )
    merger.add_argument("--to", choices=("lora", "diff"), default="lora", help="a LoRA or the exact difference (large)")
    merger.add_argument(
        "--rank", type=int, default=0, help="reduce to this rank (default: 0, the sum of all ranks, exact)"
    )
    merger.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="sum",
        help="; ".join(f"{name}: {method.purpose}" for name, method in METHODS.items()),
    )
    merger.add_argument(
        "--density", type=float, default=0.5, help="share of each file's values that other methods keep (default: 0.5)"
    )
    merger.add_argument("--seed", type=int, default=0, help="of the values that dare and della drop (default: 0)")
    merger.add_argument(
        "--block-weights", nargs="+", default=[], metavar="LIST", help="one list of numbers for each file"
    )
    merger.add_argument("--ckpt", default="", metavar="FILE", help="their checkpoint (default: the tiny model)")
    _add_precision(merger)
    merger.add_argument("--into", action="store_true", help="merge them into a new checkpoint")
    add_output(merger, "A+B or CKPT+A+B")


def _add_rank_rule(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rank", type=int, default=0, help="the rank, or the highest that a rule may choose")
    command.add_argument("--conv-rank", type=int, help="the same for kernels larger than 1×1 (default: as --rank)")
    rules = command.add_mutually_exclusive_group()
    for name, kept in _RULES.items():
        rules.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"by layer: keep {kept}")


def _rank_rule(options: argparse.Namespace) -> RankRule:
    """The rule that the command line gives; AdapterError if it is out of range."""
    from lib_lora_train.lora_tools.rank_rule import RankRule

    chosen = {name: value for name in _RULES if (value := getattr(options, name)) is not None}
    rule = RankRule(options.rank, options.conv_rank, *(next(iter(chosen.items())) if chosen else ()))
    rule.check()
    return rule


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="precision of the saved weights (default: fp16)",
    )


def run_check(options: argparse.Namespace) -> int:
    """Print what the LoRA file contains, or the problems of the settings; returns 2 if the file is unusable."""
    if options.file.suffix.lower() == ".toml":
        return _check_settings(options.file)
    from lib_lora_train.lora_tools.check import check_file, format_report

    checked = check_file(options.file)
    print(format_report(checked))
    return EXIT_BROKEN if checked.defects else 0


def _check_settings(path: Path) -> int:
    """Print the problems that a settings file has by itself, without looking at its images and its checkpoint."""
    from lib_lora_train.config.train_config import read_config
    from lib_lora_train.config.validation.validate import all_problems, has_errors
    from lib_lora_train.formats.toml import read_toml_config

    config, unread = read_config(read_toml_config(path))
    problems = all_problems(config, unread)
    print(*(f"{problem.level}: {problem}" for problem in problems), sep="\n", end="\n" if problems else "")
    if has_errors(problems):
        return EXIT_BROKEN
    print(f"{path.name} can be used. To check its images and checkpoint, too: train {path} --dry-run")
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Write the converted file and print the error."""
    from lib_lora_train.adapters.files.lora_file import read_adapter
    from lib_lora_train.lora_tools.convert import base_mismatch, convert, write_converted

    file, checkpoint = read_adapter(options.file), _checkpoint(options)
    ending = "diff" if options.to == "diff" else f"rank{options.rank}"
    path = output_path(options, f"{options.file.stem}-{ending}")
    model = _model(checkpoint, path.parent)
    converted = convert(file, model, to=options.to, rank=options.rank, precision=options.precision)
    saved = write_converted(path, converted, to=options.to, rank=options.rank, metadata=file.metadata)
    _print_saved(path, saved.size_bytes, converted.error)
    if options.to == "lora" and converted.error > _ROUNDING:
        print(f"The largest error is in {converted.worst}. Use a higher --rank, or --to diff for an exact file.")
    _print_skipped(converted.left_out)
    _warn([base_mismatch(file, checkpoint)])
    return 0


def run_resize(options: argparse.Namespace) -> int:
    """Write the file with its new ranks and print them with the error."""
    from lib_lora_train.adapters.files.lora_file import read_adapter
    from lib_lora_train.lora_tools.rank_rule import describe_ranks
    from lib_lora_train.lora_tools.resize import resize, write_resized

    rule = _rank_rule(options)
    path = output_path(options, f"{options.file.stem}-{rule.name}")
    file = read_adapter(options.file)
    resized = resize(file, rule, precision=options.precision)
    saved = write_resized(path, resized, file.metadata)
    _print_saved(path, saved.size_bytes, resized.converted.error)
    print(f"{_sentence(describe_ranks(resized.ranks))} The largest error is in {resized.converted.worst}.")
    _print_skipped(resized.converted.left_out)
    return 0


def run_extract(options: argparse.Namespace) -> int:
    """Write the LoRA and print its ranks, and what of the difference it does not hold."""
    from tqdm import tqdm

    from lib_lora_train.lora_tools.extract import ExtractOptions, extract, write_extracted
    from lib_lora_train.lora_tools.rank_rule import describe_ranks

    base, tuned, rule = user_path(str(options.base)), user_path(str(options.tuned)), _rank_rule(options)
    chosen = ExtractOptions(rule, options.targets, not options.unet_only, options.clamp_quantile)
    path = output_path(options, f"{tuned.stem}-{rule.name}")
    with tqdm(desc="layers", leave=False, disable=None) as meter:

        def show(done: int, total: int) -> None:
            meter.total = total
            meter.update(done - meter.n)

        found = extract(base, tuned, chosen, precision=options.precision, on_layer=show)
    saved = write_extracted(path, found)
    print(f"Saved to {path} ({saved.size_bytes / 2**20:.1f} MiB), {count(len(found.ranks), 'layer')}.")
    print(
        f"Error: {found.converted.error:.2%} of the change in these layers, most in {found.worst}. "
        f"{found.outside:.2%} of the whole change is outside of them."
    )
    print(_sentence(describe_ranks(found.ranks)))
    _warn(found.notes)
    return 0


def run_metadata(options: argparse.Namespace) -> int:
    """Print the metadata, or write a copy of the file with the changes."""
    from lib_lora_train.core.safetensors_header import read_header
    from lib_lora_train.lora_tools.edit_metadata import MetadataEdit, describe_metadata, write_edited

    file = user_path(str(options.file))
    values = {name: value for name in FIELDS if (value := getattr(options, name)) is not None}
    for entry in options.set:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise LoraTrainError(f"{entry!r} has no value. Write KEY=VALUE, or KEY= to remove the entry.")
        values[key] = value
    preview = user_path(str(options.preview)) if options.preview else None
    if not (values or preview or options.strip):
        print("\n".join(describe_metadata(read_header(file))) or f"{file.name} has no metadata.")
        return 0
    path = output_path(options, f"{file.stem}-edited")
    write_edited(file, path, MetadataEdit(values, options.strip, preview))
    print(f"Saved to {path}.")
    return 0


def run_merge(options: argparse.Namespace) -> int:
    """Write the merged LoRA or checkpoint and print the error."""
    from lib_lora_train.adapters.files.lora_file import read_adapter
    from lib_lora_train.lora_tools.convert import base_mismatch
    from lib_lora_train.lora_tools.merge import merge_into_file
    from lib_lora_train.lora_tools.merge_into_checkpoint import pair_weights, write_merged_checkpoint
    from lib_lora_train.models.model_files import model_name

    files = pair_weights([read_adapter(path) for path in options.files], options.weights)
    chosen = MergeOptions(options.method, options.density, options.seed, tuple(options.block_weights))
    chosen.check()
    checkpoint = _checkpoint(options)
    names = "+".join(path.stem for path in options.files)
    if options.into:
        chosen.require_sum()
        path = output_path(options, f"{model_name(checkpoint)}+{names}")
        baked = write_merged_checkpoint(checkpoint, files, path, chosen.blocks)
        print(f"Saved to {baked.path} ({baked.size_bytes / 2**20:.1f} MiB), {count(baked.layers, 'layer')} changed.")
        left_out = baked.left_out
    else:
        path = output_path(options, names)
        model = _model(checkpoint, path.parent)
        merged, saved = merge_into_file(
            path, files, model, to=options.to, rank=options.rank, precision=options.precision, options=chosen
        )
        _print_saved(path, saved.size_bytes, merged.error)
        if merged.change:
            print(f"Before that, {options.method} changed {merged.change:.2%} of the plain sum.")
        left_out = merged.left_out
    _print_skipped(left_out)
    _warn([base_mismatch(file, checkpoint) for file, _ in files])
    return 0


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _print_saved(path: Path, size_bytes: int, error: float) -> None:
    print(f"Saved to {path} ({size_bytes / 2**20:.1f} MiB). Error: {error:.2%} of the update.")


def _print_skipped(left_out: Sequence[str]) -> None:
    if left_out:
        print("Skipped:", *left_out, sep="\n  - ")


def _warn(sentences: Sequence[str]) -> None:
    for sentence in filter(None, sentences):
        print(f"warning: {sentence}")


def _checkpoint(options: argparse.Namespace) -> Path:
    """The given checkpoint, else the tiny model."""
    from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT

    return user_path(options.ckpt) if options.ckpt else EMBEDDED_CHECKPOINT


def _model(checkpoint: Path, folder: Path) -> Any:
    """The checkpoint in full precision."""
    from lib_lora_train.hosts.standalone import StandaloneHost

    return StandaloneHost(None, None, folder).load_layers(TrainConfig(checkpoint=str(checkpoint), precision="fp32"))
