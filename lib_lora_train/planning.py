"""What a config would train, before anything heavy starts; no PyTorch is needed for that."""

from __future__ import annotations

from lib_lora_train.config import TrainConfig
from lib_lora_train.data.plan import Plan, make_plan
from lib_lora_train.data.scan import read_dataset
from lib_lora_train.judge import judge, require_usable


def plan_job(config: TrainConfig) -> Plan:
    """What would be trained, before anything heavy starts; ConfigError or DataError when it cannot be."""
    require_usable(judge(config))
    return make_plan(read_dataset(config), config)
