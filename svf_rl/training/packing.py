"""The rows that a micro-batch is computed in: completions of one prompt behind it, which is read once.

A piece is a prompt and some of its completions; a row holds as many pieces as fit into the longest. Each completion
sees its own prompt and itself, at the positions that it has in a row of its own. What all prompts begin with (a system
message, worked examples) stands once at the beginning of a row, which may then be longer. Tokens of a completion that a
tool wrote are seen and do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import split_tensor_dict

_ATTENTION_SHARE = 6  # a row of this many times the hidden size costs as much in attention as in everything else

_BEGINNING = -1  # the part of a row that all of it sees


@dataclass(frozen=True)
class PackedRows:
    """
    Args:
        input_ids, position_ids (`Tensor` of shape `(R, L)`): The tokens, filled up on the right.
        attention (`Tensor` of shape `(R, 1, L, L)`, *optional*): Which token sees which, as the model takes
            it; `None` where each row is one sequence: it is causal then.
        predicts (`Tensor` of shape `(n,)`): For each token that counts, row by row of the micro-batch, the place among
            the `R · L` whose state predicts it.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention: Tensor | None
    predicts: Tensor

    def hidden_states(self, model: nn.Module) -> Tensor:
        """`(n, d)`, those that predict the tokens that count; `model` has [`add_hidden_states_forward`]'s call."""
        ids, mask, positions = self.input_ids, self.attention, self.position_ids
        states = model(input_ids=ids, attention_mask=mask, position_ids=positions, hidden_states_only=True)
        # A prompt's last state is taken for each of its completions. The backward pass of an embedding adds such
        # gradients in a fixed order; that of an index does not, and a resumed run would have other bits.
        return nn.functional.embedding(self.predicts, states.flatten(0, 1))


@dataclass
class _Piece:
    prompt: list[int]
    """Without what all prompts begin with."""
    completions: dict[int, list[int]]
    """By their row in the micro-batch, up to the last token that counts and without it: its state predicts nothing."""

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions.values()))


def hindrance(model: Any) -> str | None:
    """Why `model` (unwrapped) cannot have several sequences in a row, as far as its configuration tells."""
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"{config._attn_implementation} takes no mask of tokens by tokens"
    if getattr(model, "_is_stateful", False):
        return "the model has recurrent layers"
    if layer_types := getattr(config, "layer_types", None):
        others = sorted(set(layer_types) - {"full_attention"})
        return f"the model has layers of {', '.join(others)}" if others else None
    windows = [key for key, value in config.to_dict().items() if key.endswith(("window", "window_size")) and value]
    return f"the model has a {min(windows)}" if windows else None


def counted(batch: dict[str, Tensor]) -> Tensor:
    """`(B, T)` 1 for the tokens that count: those of the completions that take part, without what tools wrote."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]


def pack(batch: dict[str, Tensor], share_prompts: bool, model: Any) -> PackedRows:
    """
    Args:
        batch (`dict`): `prompt_ids`, `prompt_mask` (B, P), `completion_ids`, `completion_mask` and where tools wrote a
            part of the completions `tool_mask` (B, T).
        share_prompts (`bool`): Read the same prompt once for several completions, where that costs less.
        model (`nn.Module`): For which, unwrapped.
    """
    prompts = _kept(batch["prompt_ids"], batch["prompt_mask"])
    completions = _kept(batch["completion_ids"], batch["completion_mask"])
    counts = [row.nonzero()[:, 0] for row in counted(batch).cpu()]
    return pack_tokens(prompts, completions, share_prompts, model, batch["prompt_ids"].device, counts)


def pack_tokens(
    prompts: list[list[int]],
    completions: list[list[int]],
    share_prompts: bool,
    model: Any,
    device: torch.device,
    counts: list[Tensor] | None = None,
) -> PackedRows:
    """As [`pack`], of the tokens of each row's prompt and completion, without padding; on `device`. `counts`: the
    places in each completion of the tokens that count; default: all."""
    config = model.config.get_text_config()
    if counts is None:
        counts = [torch.arange(len(completion)) for completion in completions]
    completions = [
        ids[: int(places[-1]) + 1] if len(places) else [] for ids, places in zip(completions, counts, strict=True)
    ]
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        if completions[row]:
            groups.setdefault(tuple(prompt) if share_prompts else row, []).append(row)
    beginning = _common_beginning([prompts[group[0]] for group in groups.values()]) if share_prompts else []
    own = [prompt[len(beginning) :] for prompt in prompts]
    most = max(map(len, groups.values()), default=1)
    candidates = []
    for size in (most >> halved for halved in range(most.bit_length())):
        # where nothing counts the pass is still made: other processes wait for its collectives
        pieces = _pieces(groups, own, completions, size) or [_Piece(own[0], {})]
        # the more stand in a row, the fewer read the beginning again
        together = [1 << doubled for doubled in range(len(pieces).bit_length() + 1)] if beginning else [1]
        candidates += [_fill(pieces, several * max(map(len, pieces))) for several in together]
    rows = min(candidates, key=lambda rows: _cost(rows, len(beginning), config.hidden_size))
    packed = _lay_out(rows, beginning, counts, device)
    if packed.attention is None or config._attn_implementation == "sdpa":
        return packed
    # eager attention adds its mask
    dtype = model.get_input_embeddings().weight.dtype
    hidden = torch.zeros(packed.attention.shape, dtype=dtype, device=packed.attention.device)
    return replace(packed, attention=hidden.masked_fill_(~packed.attention, torch.finfo(dtype).min))


def group_prompts(micro_batches: list[dict[str, Tensor]], together: int) -> list[dict[str, Tensor]]:
    """The same rows in as many micro-batches, those of one prompt side by side within each `together` that make up a
    step."""
    grouped = []
    for start in range(0, len(micro_batches), together):
        parts = micro_batches[start : start + together]
        rows = {key: torch.cat([part[key] for part in parts]) for key, value in parts[0].items() if value.ndim}
        first: dict[tuple[int, ...], int] = {}
        places = [first.setdefault(tuple(ids), row) for row, ids in enumerate(rows["prompt_ids"].tolist())]
        order = torch.tensor(places).argsort(stable=True)
        grouped += split_tensor_dict(parts[0] | {key: value[order] for key, value in rows.items()}, len(parts))
    return grouped


def _kept(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


def _common_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """What several different prompts all begin with; each keeps a token of its own, whose state predicts the first one
    of a completion."""
    if len(prompts) < 2:
        return []
    first, last = min(prompts)[:-1], max(prompts)[:-1]  # in their order, these two have the least in common
    shortest = min(map(len, prompts)) - 1
    alike = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: min(next(alike, shortest), shortest)]


def _pieces(
    groups: dict[Any, list[int]], prompts: list[list[int]], completions: list[list[int]], size: int
) -> list[_Piece]:
    """Each prompt's completions in even pieces of at most `size`."""
    pieces = []
    for group in groups.values():
        parts = -(-len(group) // size)
        pieces += [
            _Piece(prompts[group[0]], {row: completions[row][:-1] for row in group[part::parts]})
            for part in range(parts)
        ]
    return pieces


def _fill(pieces: list[_Piece], most: int) -> list[list[_Piece]]:
    """Rows of at most so many tokens, the longest pieces first."""
    pieces = sorted(pieces, key=len, reverse=True)
    rows: list[list[_Piece]] = []
    room: list[int] = []
    for piece in pieces:
        fitting = next((row for row, left in enumerate(room) if left >= len(piece)), None)
        if fitting is None:
            rows.append([piece])
            room.append(most - len(piece))
        else:
            rows[fitting].append(piece)
            room[fitting] -= len(piece)
    return rows


def _length(rows: list[list[_Piece]], beginning: int) -> int:
    return beginning + max(sum(map(len, row)) for row in rows)


def _cost(rows: list[list[_Piece]], beginning: int, hidden_size: int) -> float:
    """Of rows that are filled up to the longest. With one completion to a piece it is that of padded rows at most."""
    length = _length(rows, beginning)
    return len(rows) * length * (1 + length / (_ATTENTION_SHARE * hidden_size))


def _lay_out(rows: list[list[_Piece]], beginning: list[int], counts: list[Tensor], device: torch.device) -> PackedRows:
    length, skipped = _length(rows, len(beginning)), len(beginning)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    # Of each token: the part (beginning, prompt or completion) that it is in, and the one before which it sees: its
    # prompt, or for a prompt itself. All see the beginning. What fills up is a part of its own, which sees itself.
    part, before = torch.zeros_like(ids), torch.zeros_like(ids)
    predicts: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(counts)
    number = 0
    for r, row in enumerate(rows):
        end = skipped
        ids[r, :end] = torch.tensor(beginning, dtype=torch.long)
        positions[r, :end] = torch.arange(end)
        part[r, :end] = before[r, :end] = _BEGINNING
        for piece in row:
            number += 1
            start, end, prompt = end, end + len(piece.prompt), number
            last = end - 1
            ids[r, start:end] = torch.tensor(piece.prompt)
            positions[r, start:end] = skipped + torch.arange(len(piece.prompt))
            part[r, start:end] = before[r, start:end] = prompt
            for sequence, tokens in piece.completions.items():
                number += 1
                start, end = end, end + len(tokens)
                ids[r, start:end] = torch.tensor(tokens, dtype=torch.long)
                positions[r, start:end] = skipped + len(piece.prompt) + torch.arange(len(tokens))
                part[r, start:end], before[r, start:end] = number, prompt
                states = torch.cat([torch.tensor([last]), torch.arange(start, end)])
                predicts[sequence] = r * length + states[counts[sequence]]
    part, before, attention = part.to(device), before.to(device), None
    if any(len(row) > 1 or len(row[0].completions) > 1 for row in rows):
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        seen = (part[:, None, :] == part[:, :, None]) | (part[:, None, :] == before[:, :, None])
        seen |= part[:, None, :] == _BEGINNING
        attention = (seen & causal)[:, None]
    else:  # a position that does not go on would be taken for another sequence
        positions = torch.arange(length).repeat(len(rows), 1)
    return PackedRows(ids.to(device), positions.to(device), attention, torch.cat(predicts).to(device))
