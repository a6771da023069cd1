"""Pools whose engine mixes adapters: the same answers, combinations and classes, without a weight sync."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import SIZES, save_adapter
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from svf_rl.adaptation.arguments import FewShotArguments
from svf_rl.adaptation.classifier import ClassifierPrompt
from svf_rl.adaptation.dispatch import dispatch
from svf_rl.adaptation.few_shot import adapt
from svf_rl.adaptation.prompt_file import ungraded_items
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.experts.arguments import EngineArguments
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.generation import Sampling
from svf_rl.generation.prompts import encode_prompts
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import make_rows, model_path
from svf_rl.quickstart.dispatch_skill import DISPATCH_PROMPT
from svf_rl.svf import SVFConfig

pytestmark = pytest.mark.vllm
MODEL = ModelArguments("quickstart", dtype="float32")
GREEDY = Sampling(max_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("experts")
    moved = {"first": 0.3, "second": 0.3, "judge": 0.02}
    return {name: save_adapter(root / name, seed=seed, by=by) for seed, (name, by) in enumerate(moved.items())}


@pytest.fixture(scope="module")
def mixing(folders: dict[str, str]) -> ExpertPool:
    return _pool(folders, None)


def _pool(folders: dict[str, str], generator: ColocatedVLLMGenerator | None) -> ExpertPool:
    experts = {name: folders[name] for name in ("first", "second")}
    engine = EngineArguments(backend="vllm", enforce_eager=True)
    return ExpertPool(MODEL, experts, {"judge": folders["judge"]}, generator, engine=engine, max_length=256)


def test_base_experts_and_mixtures_answer_side_by_side_as_they_do_alone(
    mixing: ExpertPool, folders: dict[str, str], vllm_engine: ColocatedVLLMGenerator
) -> None:
    one_at_a_time = _pool(folders, vllm_engine)
    assert mixing.mixes_adapters
    assert not one_at_a_time.mixes_adapters
    questions = [[{"role": "user", "content": row["prompt"]}] for row in make_rows("math", "test", 8)]
    ids = encode_prompts(mixing.tokenizer, questions)
    some = [None, "first", "second", "judge", Mix(torch.tensor([0.6, 0.4])), Mix(torch.tensor([0.1, 0.9]))]
    which = [one for one in some for _ in ids]
    together, apart = (
        pool.generate(ids * len(some), GREEDY, [0] * len(which), which) for pool in (mixing, one_at_a_time)
    )
    assert [completion.token_ids for completion in together] == [completion.token_ids for completion in apart]
    assert len({str(completion.token_ids) for completion in together}) > 8
    assert (mixing.syncs, one_at_a_time.syncs) == (0, len(some))
    for one in some:
        mixing.use(one)
        own = [completion for completion, other in zip(together, which, strict=True) if other is one]
        assert [c.token_ids for c in mixing.generate(ids, GREEDY, [0] * 8)] == [c.token_ids for c in own]
    assert len(mixing.generator.adapters.list_adapters()) <= 4  # three experts, and the mix that is used


def test_a_search_finds_the_same_combination(
    mixing: ExpertPool, folders: dict[str, str], vllm_engine: ColocatedVLLMGenerator
) -> None:
    search = FewShotArguments(shots=4, population=4, generations=2, samples=2)
    found = [adapt(pool, _exam(pool), search) for pool in (mixing, _pool(folders, vllm_engine))]
    assert torch.equal(found[0].alpha, found[1].alpha)
    for one, other in zip(found[0].history, found[1].history, strict=True):
        assert one["fitness"] == pytest.approx(other["fitness"], abs=1e-6)
    assert found[0].syncs == 0
    assert found[1].syncs >= 8


def _exam(pool: ExpertPool) -> TaskItems:
    arguments = EvaluationArguments("quickstart", ["exam"], limit=12, max_tokens=24)
    return load_items("exam", arguments, pool.tokenizer, splits=("validation",))


def test_dispatch_classifies_and_answers_the_same(
    mixing: ExpertPool, folders: dict[str, str], vllm_engine: ColocatedVLLMGenerator
) -> None:
    conversations = [[{"role": "user", "content": row["prompt"]}] for row in make_rows("dispatch", "test", 24)]
    experts = {"math": "first", "code": "second"}
    done = []
    for pool in (mixing, _pool(folders, vllm_engine)):
        items = ungraded_items(pool.tokenizer, conversations, GREEDY)
        done.append(
            dispatch(pool, items, experts, ClassifierPrompt(DISPATCH_PROMPT), classifier="judge", max_tokens=16)
        )
    assert done[0].experts == done[1].experts
    assert [record.completion for record in done[0].answers] == [record.completion for record in done[1].answers]
    assert (done[0].first.syncs, done[0].second.syncs) == (0, 0)


ALONE = """
import sys
from svf_rl.experts.arguments import EngineArguments
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation import Sampling
from svf_rl.models.arguments import ModelArguments

if __name__ == "__main__":
    base, expert = sys.argv[1:]
    engine = EngineArguments(backend="vllm", enforce_eager=True)
    pool = ExpertPool(ModelArguments(base, dtype="float32"), {"expert": expert}, engine=engine, max_length=64)
    greedy = Sampling(max_tokens=12, temperature=0.0)
    one, other = pool.generate([[5, 6, 7]] * 2, greedy, [0, 0], [None, "expert"])
    print("ANSWERS", one.token_ids != other.token_ids, pool.mixes_adapters, pool.syncs, flush=True)
"""


def test_a_pool_that_cannot_mix_says_why_and_syncs(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "qwen3_moe",
        **{**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path / "base")
    svf = SVFConfig(target_modules="attention", task_type="CAUSAL_LM", init="random", init_std=0.3)
    folder = save_adapter(tmp_path / "expert", svf, base=tmp_path / "base")
    # in a process of its own: one that held an engine of a dense model cannot hold one of a mixture
    (tmp_path / "alone.py").write_text(ALONE)
    command = [sys.executable, str(tmp_path / "alone.py"), str(tmp_path / "base"), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ANSWERS True False 2" in done.stdout, done.stderr[-3000:]
    assert "mixture of experts is not served in factors: each switch of experts is a weight sync" in done.stderr
