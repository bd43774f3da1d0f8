"""Sweeps: from typed values to named runs, what is refused with a sentence, and the record that survives a restart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import unusable_name
from lib_lora_train.core.errors import ConfigError, HostError
from lib_lora_train.runs.queue import new_entry
from lib_lora_train.runs.run_context import unused_name
from lib_lora_train.runs.sweeps.sweep import MAX_RUNS, Variant, make_variants, parse_axes, split_values
from lib_lora_train.runs.sweeps.sweep_record import find_members, list_sweeps, read_sweep, write_sweep

CONFIG = TrainConfig(concepts=(Concept("/set/10_zok", trigger="zok"), Concept("/set/cat")), output_name="zok")


def variants_of(*axes: tuple[str, str], config: TrainConfig = CONFIG) -> tuple[Variant, ...]:
    return make_variants(config, parse_axes(axes, config, fewest_runs=1))


def refusal(*axes: tuple[str, str], config: TrainConfig = CONFIG, fewest_runs: int = 2) -> str:
    with pytest.raises(ConfigError) as caught:
        make_variants(config, parse_axes(axes, config, fewest_runs=fewest_runs))
    return str(caught.value)


def test_every_combination_is_a_run_and_all_else_stays() -> None:
    variants = variants_of(("rank", "8, 16"), ("learning_rate", "1e-4 3e-4"), ("optimizer", "AdamW"))
    found = [(v.config.rank, v.config.learning_rate, v.config.optimizer) for v in variants]
    assert found == list(itertools.product((8, 16), (1e-4, 3e-4), ("AdamW",)))
    names = ("rank", "learning_rate", "optimizer", "output_name")
    same = {name: getattr(CONFIG, name) for name in names}
    assert all(variant.config.replace(**same) == CONFIG for variant in variants)


@pytest.mark.parametrize(
    ("place", "text", "values"),
    [
        ("rank", " 8;16 , 32 ", [8, 16, 32]),
        ("unet_lr", "auto, 1e-4", [None, 1e-4]),
        ("warmup", "0 5% 10", [0.0, 0.05, 10.0]),
        ("shuffle_captions", "on, off", [True, False]),
        ("lr_schedule", "cosine linear", ["cosine", "linear"]),
        ("caption_prefix", "a photo of, | ", ["a photo of,", ""]),
        ("leave_out_tags", "|smile|smile, hat", [(), ("smile",), ("smile", "hat")]),
        ("concepts[1].repeats", "1 10", [1, 10]),
        ("concepts[2].own_shuffle", "as the run, on", ["as the run", "on"]),
    ],
)
def test_values_are_read_as_the_setting_declares_them(place: str, text: str, values: list[Any]) -> None:
    assert [variant.changes[place] for variant in variants_of((place, text))] == values


def test_every_setting_can_be_varied_between_its_default_and_another_value_or_says_why_not() -> None:
    fixed = []
    for parameter in parameters_of(TrainConfig):
        raws = split_values("1 2" if parameter.kind in (int, float) else "on, off", parameter)
        assert raws, parameter.name
        try:
            parse_axes([(parameter.name, "1")], CONFIG, fewest_runs=1)
        except ConfigError as error:
            if "cannot be varied" in str(error):
                fixed.append(parameter.name)
    assert sorted(fixed) == ["output_dir", "output_name", "sample_prompts"]


def test_names_are_usable_different_and_never_look_like_another_runs_epochs(tmp_path: Path) -> None:
    axes = [
        (("learning_rate", "1e-4, 0.00015"), ("rank", "1 16")),
        (("caption_prefix", "a/b: <c> | a b c || é"), ("optimizer", "AdamW Prodigy")),
        (("leave_out_tags", "|smile|" + "x" * 300), ("seed", "0 1")),
        (("checkpoint", f"/models/{'a' * 60}1.ckpt | /models/{'a' * 60}2.ckpt"),),
        (("concepts[1].repeats", "1 2"), ("noise_offset", "0 0.05")),
    ]
    for one in axes:
        names = [variant.config.output_name for variant in variants_of(*one)]
        assert len({name.lower() for name in names}) == len(names)
        assert not any(map(unusable_name, names)), names
        assert all(name.startswith("zok-") for name in names)
        for name in names:
            (tmp_path / f"{name}-000001.safetensors").touch()
    assert unused_name((tmp_path,), "zok") == "zok", "the files of a sweep do not change the names of other runs"


def test_what_is_refused_is_explained() -> None:
    assert "Choose a setting" in refusal()
    assert "has a single value" in refusal(("rank", "8"))
    assert "'many' is not a whole number" in refusal(("rank", "8, many"))
    assert "twice" in refusal(("learning_rate", "1e-4, 0.0001"))
    assert "is given twice" in refusal(("rank", "8 16"), ("rank", "32"))
    assert "Did you mean 'rank'" in refusal(("rnk", "8 16"))
    assert "is called 'rank' here" in refusal(("network_dim", "8 16"))
    assert "at most 3" in refusal(*((name, "1 2") for name in ("rank", "seed", "epochs", "batch_size")))
    assert "4 × 5 × 6 = 120 runs are too many" in refusal(
        ("rank", "1 2 3 4"), ("seed", "1 2 3 4 5"), ("epochs", "1 2 3 4 5 6")
    )
    assert f"at most {MAX_RUNS}" in refusal(("seed", " ".join(map(str, range(MAX_RUNS + 1)))))
    assert "has no values" in refusal(("rank", " , "))
    assert "there are 2 concepts" in refusal(("concepts[3].repeats", "1 2"))
    assert "names the files" in refusal(("output_name", "a | b"))


def test_all_problems_are_reported_together_with_the_values_that_cause_them() -> None:
    text = refusal(("rank", "8 0"), ("learning_rate", "x"), ("nothing", "1"))
    assert all(part in text for part in ("rank", "learning_rate", "nothing"))
    alone = refusal(("bucket_step", "64, 60"))
    assert "(With bucket_step 60.)" in alone and "64." not in alone.split("(With")[1]
    everywhere = refusal(("rank", "8 16"), config=CONFIG.replace(bucket_step=60))
    assert "(With" not in everywhere and everywhere.count("- bucket_step 60 is") == 1, "the sweep does not cause it"


# --- the record -------------------------------------------------------------------------------------


def test_a_sweep_is_recorded_with_all_settings_and_read_again(tmp_path: Path) -> None:
    variants = variants_of(("rank", "8 16"), ("leave_out_tags", "|smile"))
    written = write_sweep(tmp_path, "20260101-zok", variants, "zok")
    again = write_sweep(tmp_path, "", variants, "zok")
    assert again.id != written.id
    read = read_sweep(tmp_path, written.id)
    assert [run.config() for run in read.runs] == [variant.config for variant in variants]
    assert (read.base, read.places) == ("20260101-zok", ("rank", "leave_out_tags"))
    assert [sweep.id for sweep in list_sweeps(tmp_path)] == [again.id, written.id]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"base": "", "runs": [{"changes": 1}]}'])
def test_a_damaged_record_is_named_and_hides_no_other(text: str, tmp_path: Path) -> None:
    good = write_sweep(tmp_path, "", variants_of(("rank", "8 16")), "zok")
    (tmp_path / "sweeps" / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(HostError, match="damaged"):
        read_sweep(tmp_path, "bad")
    assert [sweep.id for sweep in list_sweeps(tmp_path)] == [good.id]
    for name in ("gone", "../sweeps/" + good.id, ""):
        with pytest.raises(HostError, match="no sweep"):
            read_sweep(tmp_path, name)


def make_run(home: Path, name: str, origin: dict[str, Any], *states: str) -> None:
    folder = home / name
    folder.mkdir()
    (folder / "origin.json").write_text(json.dumps(origin), encoding="utf-8")
    lines = [{"kind": "StateChanged", "state": state, "message": "why", "time": 0} for state in states]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_each_planned_run_is_found_again_whatever_became_of_it(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "", variants_of(("seed", "0 1 2 3 4 5")), "zok")
    make_run(tmp_path, "20260101-a", sweep.origin(0), "running", "failed")
    make_run(tmp_path, "20260102-a", sweep.origin(0), "running", "finished")
    make_run(tmp_path, "20260103-b", sweep.origin(1), "running", "failed")
    make_run(tmp_path, "20260104-c", sweep.origin(2), "running")
    make_run(tmp_path, "20260105-d", sweep.origin(3), "running")
    make_run(tmp_path, "20260106-other", {"sweep": "other", "number": 5}, "running", "finished")
    entry = new_entry(CONFIG, origin=sweep.origin(4))
    members = find_members(tmp_path, sweep, (entry,), active_run="20260105-d")
    assert [member.state for member in members] == [
        "finished",
        "failed",
        "interrupted",
        "running",
        "queued",
        "missing",
    ]
    assert [member.run for member in members][:4] == ["20260102-a", "20260103-b", "20260104-c", "20260105-d"]
    assert members[1].problem == "why"
