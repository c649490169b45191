#!/usr/bin/env bash
# What training costs on this machine's GPU, and whether the CUDA paths are right: JSON files and tables.
#
#   bash benchmarks/gpu.sh                     # into runs/gpu, in seven minutes at most
#   bash benchmarks/gpu.sh results 300         # into results/, in 300 seconds
#   REHEARSE=1 bash benchmarks/gpu.sh runs/r   # on the CPU and a tiny base: does the script itself work?
#
# Rows that are in the JSON files already are kept, so that a second call goes on where the first one stopped. On a
# machine without network, put wheels of what it lacks into .whl/ beside vlkit/ (one version of each); they go into a
# folder of their own. Ends with 1 if a check failed or a row did.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
output=${1:-runs/gpu}
limit=${2:-420}
python=${PYTHON:-python3}
status=0

mkdir -p "$output"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if compgen -G "$root/.whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$root"/.whl/*.whl || exit
    export PYTHONPATH=$site:$PYTHONPATH
fi

checks=(--json "$output/gpu_checks.json")
steps=(--json "$output/training_step_gpu.json" --repeats 5)
# The most telling first, for the time that there is.
places=(ViT-L-14:128 ViT-B-32:32 ViT-B-16:128 ViT-B-32:512 ViT-L-14:32 ViT-B-32:128)
stored=(ViT-L-14@bf16:128 ViT-L-14@int8:128 ViT-L-14@nf4:128)
if [ -n "${REHEARSE:-}" ]; then
    checks+=(--device cpu --waits_base tiny --profile_base tiny --batch_size 4 --grid_base null)
    steps+=(--device cpu --text_lengths 20)
    places=(tiny:2,3)
    stored=(tiny@int8:2)
else
    checks+=(--device cuda)
    steps+=(--device cuda)
fi
# On CUDA "SHERL" keeps whole taps and pools them with fused kernels; "active values" is what it keeps on the CPU.
methods=("SHERL" "SHERL, compiled" "SHERL, without fused kernels" "linear" "SHERL on tokens, compiled" "SHERL on tokens" "SHERL on tokens, batch at once"
    "LoRA + checkpointing" "LoRA" "full" "full + checkpointing" "SHERL, int8 taps" "SHERL, active values"
    "SHERL, int8 taps, chunks of 8" "SHERL on tokens, int8 taps, chunks of 8" "SHERL, plain autograd")
frozen=("SHERL" "SHERL on tokens" "LoRA")
[ -z "${REHEARSE:-}" ] || { methods=("SHERL" "LoRA") && frozen=("SHERL"); }

measure() { # bases and methods by name of array, seconds
    local -n bases=$1 of=$2
    [ "$3" -gt 15 ] || { echo "no time for ${bases[*]}" && return; }
    timeout $(($3 + 20)) "$python" "$root/benchmarks/training_step.py" "${steps[@]}" --seconds "$3" \
        --bases "${bases[@]}" --methods "${of[@]}" >"$output/table.md" || status=1
    echo "${bases[*]}: done after $SECONDS s"
}

# SECONDS counts the shell's own time. What is left after the checks goes to the steps, less what the last row may take.
if [ -z "${REHEARSE:-}" ]; then
    timeout 60 "$python" -m pytest -n 0 -p no:cacheprovider --rootdir "$root" "$root/tests/adapters/fused_kernels.py" || status=1
    echo "fused kernels: done after $SECONDS s"
fi
timeout $((limit / 2)) "$python" "$root/benchmarks/gpu_checks.py" "${checks[@]}" || status=1
echo "checks: done after $SECONDS s"
if [ -z "${REHEARSE:-}" ]; then
    timeout 60 "$python" "$root/benchmarks/compiled_blocks.py" --base ViT-L-14 --batch_size 128 --device cuda \
        --json "$output/compiled_blocks.json" || status=1
    echo "compiled blocks: done after $SECONDS s"
fi
measure places methods $((limit - SECONDS - 70))
measure stored frozen $((limit - SECONDS - 25))
cat "$output/table.md"
exit $status
