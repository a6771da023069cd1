"""Which checkpoint a run resumes from, and whether it may: what must be as it was, and what need not."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.runs.provenance import remove_secrets
from svf_rl.runs.run_folder import read_summary
from svf_rl.runs.summary import RunSummary
from svf_rl.settings.recipe import Recipe, find_default
from svf_rl.storage.same_settings import check_same_settings
from svf_rl.training.checkpoints import Checkpoint, current_run, last_sound, read_checkpoint
from svf_rl.training.earlier_run import check_no_run

# How long a run is, what it reports and keeps, and where it runs: none of it changes a step that is made. What the
# rows are is compared by their content, not by where they were read from.
_MAY_DIFFER = frozenset(
    """
    max_steps num_train_epochs early_stopping_patience load_best_model_at_end
    logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id log_completions log_multimodal log_unique_prompts num_completions_to_print
    print_completions_steps log_completions_hub_repo skip_memory_metrics debug
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size
    save_strategy save_steps save_total_limit save_only_model save_on_each_node enable_jit_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    output_dir overwrite_output_dir logging_dir resume_from_checkpoint restore_callback_states_from_checkpoint
    data_path data_dir dataset_name
    use_cpu device local_rank deepspeed fsdp fsdp_config ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps
    vllm_gpu_memory_utilization vllm_enable_sleep_mode vllm_enforce_eager vllm_weights vllm_max_model_length
    vllm_tensor_parallel_size vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
    vllm_server_failure vllm_server_folder vllm_group_port
""".split()
)

# These decide together with the number of processes which sequences make a step: compared as products.
_BATCH = frozenset(
    ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size")
)


def find_checkpoint(wanted: str | bool | None, output: Path, overwrite: bool = False) -> Checkpoint | None:
    """
    The checkpoint that `resume_from_checkpoint` means.

    Args:
        wanted (`str` or `bool`, *optional*): `"auto"`: the last sound one in `output`, or none; `True`: the last sound
            one; else the folder of one.
        output (`Path`): the output folder of the run.
        overwrite (`bool`, *optional*, defaults to `False`): a run that starts anew may replace one that is there.

    Raises:
        SVFError: there is none where one must be, the one that was named is not whole, or none is wanted where there
            is a run already.
    """
    if wanted and overwrite:
        raise SVFError("--resume continues the run that --overwrite_output_dir removes: give one of them")
    if not wanted:
        if not overwrite:
            check_no_run(output)
        return None
    if wanted not in ("auto", True):
        named = read_checkpoint(Path(str(wanted)))
        if current_run(output) != named.manifest.run:  # it goes on elsewhere, and there is another one
            check_no_run(output)
        return named
    found = last_sound(output)
    if found is None and wanted is True:
        raise SVFError(
            f"{output} holds no checkpoint to resume from: resume_from_checkpoint auto starts over in that case"
        )
    return found


def check_same_run(checkpoint: Checkpoint, settings: Mapping[str, Any], processes: int) -> None:
    """
    Raises `SVFError`, naming the key, where resuming from `checkpoint` would not be the run that it was written by.

    More or fewer processes, or another division of the batch, are accepted as long as every step is made of the same
    number of sequences: the same prompts, with the same sampling seeds, then meet in it. Not under DeepSpeed, which has
    shared out the optimizer's state over the processes of then.
    """
    folder, manifest = checkpoint.folder, checkpoint.manifest
    # a key that did not exist then has the default that leaves things as they were
    before = {key: find_default(key) for key in settings} | manifest.settings
    remedy = "give the recipe the same values, or start over in another output_dir"
    check_same_settings(before, remove_secrets(settings), f"{folder} was written", remedy, _MAY_DIFFER | _BATCH)
    if manifest.processes != processes and manifest.parallelism.startswith("DeepSpeed"):
        raise SVFError(
            f"{folder} was written by {manifest.processes} process(es) under {manifest.parallelism}, each with its "
            f"part of the optimizer's state, and here are {processes}: resume with as many, or start over in another "
            "output_dir"
        )
    was_batch, now_batch = _describe_batch(before, manifest.processes), _describe_batch(settings, processes)
    if was_batch != now_batch:
        raise SVFError(
            f"{folder} was written by {manifest.processes} process(es) with {was_batch}, and here "
            f"{processes} make(s) {now_batch}: the steps would be of other sequences; change "
            "per_device_train_batch_size or gradient_accumulation_steps so that the products agree"
        )


def check_same_machinery(checkpoint: Checkpoint, rows: Mapping[str, str], parallelism: str) -> None:
    """Raises `SVFError` where `checkpoint` is of other rows, or holds its optimizer in another form."""
    folder, manifest = checkpoint.folder, checkpoint.manifest
    for split in sorted(manifest.rows.keys() | rows.keys()):
        if manifest.rows.get(split) != rows.get(split):
            raise SVFError(
                f"{folder} was written with other {split} rows than those loaded now: restore the data, or start over "
                "in another output_dir"
            )
    if manifest.parallelism != parallelism:
        raise SVFError(
            f"{folder} was written under {manifest.parallelism}, and this is {parallelism}: the optimizer's state "
            "cannot be read, launch with the accelerate config of before"
        )


def rows_digest(rows: Dataset) -> str:
    """Says whether rows are the same: their number, and the content of a thousand of them, evenly spaced."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for index in range(0, len(rows), max(1, len(rows) // 1000)):
        digest.update(json.dumps(rows[index], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def ended_run(output: Path, recipe: Recipe) -> RunSummary | None:
    """
    `summary.json` of the run in `output`, if it went to its end and the recipe does not ask for more steps.

    Raises:
        SVFError: the recipe is another one, which the run that ended says nothing of.
    """
    summary = read_summary(output)
    run = current_run(output)
    if summary.updates is None or summary.run not in (None, run):
        return None
    before, now = summary.recipe, recipe.raw
    if any(before.get(key) != now.get(key) for key in ("max_steps", "num_train_epochs", "early_stopping_patience")):
        return None
    defaults = {key: find_default(key) for key in before.keys() | now.keys()}
    made = f"the run in {output} has ended, and was made"
    remedy = "give another --output_dir, or --overwrite_output_dir in place of --resume to start over"
    check_same_settings({**defaults, **before}, {**defaults, **remove_secrets(now)}, made, remedy, _MAY_DIFFER | _BATCH)
    return summary


def _describe_batch(settings: Mapping[str, Any], processes: int) -> str:
    update = settings["per_device_train_batch_size"] * processes * settings["gradient_accumulation_steps"]
    generated = settings["generation_batch_size"]
    return f"{update} sequences a step" + ("" if generated == update else f" and {generated} generated together")
