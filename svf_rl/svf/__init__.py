"""Singular value fine-tuning as a PEFT method: importing this module registers it with PEFT."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from svf_rl.svf.config import PEFT_TYPE_SVF, SVFConfig
from svf_rl.svf.layer import SVFLinear, reference_mode, svf_layers
from svf_rl.svf.model import SVFModel

__all__ = ["SVFConfig", "SVFLinear", "SVFModel", "reference_mode", "svf_layers"]

# PEFT's register_peft_method accepts only the members of PEFT's own enum, so the tables are filled here.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE_SVF] = SVFConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE_SVF] = SVFModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE_SVF] = SVFModel.prefix
