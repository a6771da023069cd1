"""Adapter folders that went wrong in every way that a disk, an editor or an attacker may bring about, by seed."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**9, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x", "../../x", "a" * 5000,
    "(", "a{99999999999}", "\0", "\ud800", "two\nlines", [], [1], ["x"], [None], [[]], {}, {"a": 1}, {"x": {}},
    "LORA", "SVF", "PREFIX_TUNING", "XLORA", "NOSUCH", "sigmoid", "all-linear",
)  # fmt: skip
COMBINATIONS: tuple[Any, ...] = (
    [1], {"experts": 3}, {"experts": ["a"], "alpha": None}, {"experts": ["a"], "alpha": [["x"]]},
    {"experts": [1], "alpha": [[1]]}, {"experts": ["../../a"], "alpha": [[float("inf")]]},
    {"experts": ["a"], "alpha": [1]}, {"experts": ["a"], "alpha": [[0.5]], "scope": 3, "form": []},
)  # fmt: skip
SUMMARIES = (
    "", "[]", "{", '{"recipe": 3}', "[" * 100_000, '{"recipe": {"dtype": 3, "task": [1], "mixture": 5}}',
    '{"recipe": {"task": "mixture", "mixture": [1]}, "accuracy": "x", "items": -1}',
    '{"recipe": {"task": "gsm8k", "rewards": 3, "chat_template_kwargs": [1]}, "rows": {"train": "x"}}',
    '{"recipe": {"task": "gsm8k"}, "updates": 1e400, "items": 1000000000000000000000000000000, "accuracy": 1e300}',
    '{"recipe": {"task": "gsm8k", "dtype": "float999", "model_revision": {}}, "trained_values": 1}',
)  # fmt: skip
FILES = ("adapter_config.json", "adapter_model.safetensors", "summary.json", "README.md", "metrics.jsonl")


def damage(folder: Path, seed: int) -> str:
    """Change one thing of the adapter in `folder`; returns in words what was done."""
    rng = random.Random(seed)
    kind = rng.choice(list(_KINDS))
    return f"{kind}: {_KINDS[kind](folder, rng)}"


def _flip_bits(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(FILES[:2])
    content = bytearray(file.read_bytes())
    places = [rng.randrange(min(len(content), rng.choice([600, 10**9]))) for _ in range(rng.choice([1, 3, 20]))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"{file.name} at {places}"


def _truncate(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(FILES[:2])
    content = file.read_bytes()
    length = rng.choice([0, 1, 7, 8, 9, len(content) // 2, len(content) - 1])
    file.write_bytes(content[:length])
    return f"{file.name} to {length} bytes"


def _set_value(folder: Path, rng: random.Random) -> str:
    config = _config(folder)
    key, value = rng.choice(sorted(config)), rng.choice(VALUES)
    _write_config(folder, {**config, key: value})
    return f"{key} = {str(value)[:40]!r}"


def _drop_key(folder: Path, rng: random.Random) -> str:
    config = _config(folder)
    key = rng.choice(sorted(config))
    del config[key]
    _write_config(folder, config)
    return key


def _make_huge(folder: Path, rng: random.Random) -> str:
    key = rng.choice(["r", "rank_pattern", "num_virtual_tokens", "layers_to_transform", "max_multiplier", "lora_alpha"])
    size = rng.choice([10**6, 10**9, 2**31 - 1])
    _write_config(folder, {**_config(folder), key: {"up_proj": size} if key == "rank_pattern" else size})
    return f"{key} = {size}"


def _record_combination(folder: Path, rng: random.Random) -> str:
    combination = rng.choice(COMBINATIONS)
    _write_config(folder, {**_config(folder), "combination": combination})
    return str(combination)


def _damage_header(folder: Path, rng: random.Random) -> str:
    """The header of the tensors says what is not so: sides of terabytes, other types, names that lead elsewhere."""
    header, body = _header(folder)
    name = rng.choice([name for name in header if name != "__metadata__"])
    field = rng.choice(["shape", "data_offsets", "dtype", "entry", "__metadata__", "name"])
    values = {
        "shape": ([10**13], [-1], [2**62, 4], [0], [], "x", [1, 1], None),
        "data_offsets": ([0, 10**13], [5, 1], [-1, 0], [0, 0], None, [0]),
        "dtype": ("F64", "I8", "U8", "BOOL", "F8_E4M3", "X", 3, "BF16"),
        "entry": (None, 3, [], {}),
        "__metadata__": ({"a": 1}, "x", None, {"format": "tf"}),
        "name": ("../../x", "", "a" * 10_000, "\0", "base_model.model.x.svf_z.weight", ".svf_z.weight", "svf_z.weight"),
    }
    value = rng.choice(values[field])
    if field == "name":
        header[value] = header.pop(name)
    elif field in ("entry", "__metadata__"):
        header[name if field == "entry" else field] = value
    else:
        header[name][field] = value
    _write_header(folder, header, body)
    return f"{field} of {name} = {str(value)[:40]!r}"


def _damage_length(folder: Path, rng: random.Random) -> str:
    file = folder / FILES[1]
    length = rng.choice([0, 1, 2**63, 2**40, 99_999_999, file.stat().st_size])
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    return f"a header of {length} bytes"


def _damage_tensor(folder: Path, rng: random.Random) -> str:
    tensors = load_file(folder / FILES[1])
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changes: dict[str, Callable[[], torch.Tensor]] = {
        "no values": lambda: tensor[:0],
        "one less": lambda: tensor[:-1],
        "one side more": lambda: tensor.unsqueeze(0).contiguous(),
        "no side": lambda: torch.zeros(()),
        "another shape": lambda: torch.zeros(100, 10),
        "twice": lambda: torch.cat([tensor, tensor]),
        "float64": tensor.double,
        "int64": tensor.long,
        "bool": tensor.bool,
    }
    change = rng.choice([*changes, "lost", "of another layer", "renamed"])
    if change in changes:
        tensors[name] = changes[change]()
    elif change != "lost":
        tensors[name.replace("0", "7") if change == "of another layer" else "x"] = tensor
    save_file(tensors, folder / FILES[1])
    return f"{name}: {change}"


def _fill_tensors(folder: Path, rng: random.Random) -> str:
    """All trained values; with the probes that a program would save with them."""
    value = rng.choice([float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e20, 1e6])
    filled = ("weight", "svf_probe") if rng.random() < 0.5 else ("weight",)
    tensors = load_file(folder / FILES[1])
    for name, tensor in tensors.items():
        if name.endswith(filled):
            tensors[name] = torch.full_like(tensor, value)
    save_file(tensors, folder / FILES[1])
    return f"{filled} of {value}"


def _replace_file(folder: Path, rng: random.Random) -> str:
    file, by = folder / rng.choice(FILES), rng.choice(["nothing", "folder", "pipe", "link", "device", "loop", "noise"])
    file.unlink(missing_ok=True)
    if by == "folder":
        file.mkdir()
    elif by == "pipe":
        os.mkfifo(file)
    elif by in ("link", "device", "loop"):
        file.symlink_to({"link": "/nowhere", "device": "/dev/zero", "loop": file.name}[by])
    elif by == "noise":
        file.write_bytes(rng.randbytes(100))
    return f"{file.name} by {by}"


def _write_summary(folder: Path, rng: random.Random) -> str:
    text = rng.choice(SUMMARIES)
    (folder / "summary.json").write_text(text)
    return text[:60]


_KINDS: dict[str, Callable[[Path, random.Random], str]] = {
    "flipped bits": _flip_bits, "truncated": _truncate, "a value": _set_value, "another value": _set_value,
    "a key less": _drop_key, "a size": _make_huge, "combination": _record_combination, "header": _damage_header,
    "length": _damage_length, "a tensor": _damage_tensor, "values": _fill_tensors, "replaced": _replace_file,
    "summary": _write_summary,
}  # fmt: skip


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILES[0]).read_text())


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / FILES[0]).write_text(json.dumps(config))


def _header(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / FILES[1]).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def _write_header(folder: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    (folder / FILES[1]).write_bytes(struct.pack("<Q", len(text)) + text + body)
