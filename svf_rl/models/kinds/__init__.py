"""Adapter kinds: one file each, found by name. To add one, copy `lora.py` and give its `KIND` a new name."""

from svf_rl.models.kinds.kind import AdapterKind, find_kind, kind_of, kind_of_model, load_saved

__all__ = ["AdapterKind", "find_kind", "kind_of", "kind_of_model", "load_saved"]
