"""A finished run on the embedded model that nobody had to train, for tests of what is done with past runs."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.events import EpochDone, LoraWritten, Planned, SampleDrawn, StateChanged
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder, new_run_folder
from tests.stand_ins.ui import write_images

PROMPTS = ("# concept", "zorp --d 1", "zorp, blue background --d 1", "# control", "fox --d 1")


def write_past_run(home: Path, epochs: int = 3, steps: int = 4) -> RunFolder:
    """The folder of a run in `home`/outputs with a LoRA file per epoch, which change images more and more."""
    folder = new_run_folder(home / "outputs", "zorp")
    config = TrainConfig(
        concepts=(Concept(folder=str(home), trigger="zorp"), Concept(folder=str(home), trigger="mip")),
        output_name="zorp",
        resolution=128,
        min_bucket=64,
        sample_prompts=PROMPTS,
        sample_steps=steps,
        sample_cfg=3.0,
        sample_sampler="Euler",
    )
    write_toml_config(folder.config, config)
    host = StandaloneHost(None, None, home / "models" / "Lora", "cpu")
    host.lora_dir.mkdir(parents=True)
    adapter = inject(host.load_model(TrainConfig()), AdapterSpec("lora", rank=2), seed=1)
    events: list[object] = [Planned(1, 0, 2, epochs, 2 * epochs), StateChanged("running")]
    for epoch in range(1, epochs + 1):
        path = host.lora_dir / f"zorp-{epoch:06}.safetensors"
        for parameter in (one for group in adapter.groups.values() for one in group):
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.06 * epoch
            )
        write_adapter(path, adapter.state(), metadata={}, precision="fp16")
        events += [EpochDone(epoch, 2 * epoch, 0.1), LoraWritten(str(path), epoch, 2 * epoch)]
        for number, prompt in enumerate(("zorp", "fox")):
            image = write_images(folder.samples / f"{epoch}-{number}", 1) / "000.png"
            events.append(SampleDrawn(str(image), epoch, prompt, 1, is_control=prompt == "fox"))
    adapter.remove()
    lines = [log_line(log_record(event)) for event in (*events, StateChanged("finished"))]  # type: ignore[arg-type]
    folder.log.write_text("".join(lines), encoding="utf-8")
    return folder
