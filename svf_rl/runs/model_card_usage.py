"""The part of a model card that is to be run: code that loads the adapter, and the command that grades it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from svf_rl.quickstart import make_rows
from svf_rl.runs.provenance import BUNDLED, base_name, is_svf, known_elsewhere, task_names
from svf_rl.tasks import TaskOptions, find_task


def how_to_load(recipe: Mapping[str, Any], config: Mapping[str, Any], base: str | None, location: str) -> str:
    """Code that loads the adapter in `location` onto its base model and answers a question."""
    bundled = base_name(base) == BUNDLED
    imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if is_svf(config):
        imports.insert(0, "import svf_rl.svf  # registers SVF with PEFT")
    if bundled:
        imports.append("from svf_rl.quickstart import model_path")
    dtype = recipe.get("dtype", "auto")
    options = "" if dtype == "auto" else f', dtype="{dtype}"'
    revision = f', revision="{recipe["model_revision"]}"' if recipe.get("model_revision") else ""
    template = "".join(f", {key}={value!r}" for key, value in (recipe.get("chat_template_kwargs") or {}).items())
    tokens = recipe.get("max_completion_length", 256)
    lines = [
        *sorted(imports, key=lambda line: not line.startswith("import ")),
        "",
        f"base_model = {'model_path()' if bundled else json.dumps(base_name(base))}",
        f'adapter = "{location}"' + ("  # the folder of this file" if location == "." else ""),
        f"tokenizer = AutoTokenizer.from_pretrained(base_model{revision})",
        f"model = AutoModelForCausalLM.from_pretrained(base_model{options}{revision})",
        "model = PeftModel.from_pretrained(model, adapter)",
        "",
        f'messages = [{{"role": "user", "content": {json.dumps(_question(recipe), ensure_ascii=False)}}}]',
        "inputs = tokenizer.apply_chat_template(",
        f'    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{template}',
        ")",
        f"output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
    needs = "svf_rl and its dependencies" if is_svf(config) or bundled else "PEFT"
    note = "" if known_elsewhere(base) or bundled else " `base_model` is the folder or the Hub name of the base model."
    return f"Needs {needs}.{note}\n\n```python\n" + "\n".join(lines) + "\n```"


def _question(recipe: Mapping[str, Any]) -> str:
    if recipe.get("task") == BUNDLED and recipe.get("skill", "math") in ("math", "choice", "code"):
        return str(make_rows(recipe.get("skill", "math"), "test", 1)[0]["prompt"])
    return "Your question"


def how_to_evaluate(recipe: Mapping[str, Any], base: str | None, location: str) -> str:
    """The command that grades the adapter as its training did; empty where the task is not known."""
    tasks = task_names(recipe)
    if not tasks:
        return ""
    words = ["svf-rl", "eval", base_name(base), "--adapter", location, "--tasks", ",".join(tasks)]
    for key in ("dataset_name", "dataset_config", "prompt_column", "answer_column", "system_prompt", "profile"):
        if recipe.get(key) is not None:
            words += ["--" + key.replace("_", "-"), str(recipe[key])]
    if tasks == ["columns"] and not recipe.get("dataset_name"):
        words += ["--data-path", "YOUR_FILE.jsonl"]
    if recipe.get("rewards"):
        words += ["--reward", reward_names(recipe)[0]]
    return "With the prompts of the training, and graded as there:\n\n```bash\n" + shlex.join(words) + "\n```"


def reward_names(recipe: Mapping[str, Any]) -> list[str]:
    """The rewards that the recipe names, or those of its task."""
    known = {f.name for f in fields(TaskOptions)}
    options = TaskOptions(**{key: value for key, value in recipe.items() if key in known})
    specs = recipe.get("rewards") or find_task(str(recipe["task"])).rewards(options)
    specs = [specs] if isinstance(specs, str | Mapping) else specs
    return [spec if isinstance(spec, str) else str(spec.get("name")) for spec in specs]
