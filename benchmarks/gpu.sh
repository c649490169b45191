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
steps=(--json "$output/training_step_gpu.json" --repeats 7)
# The most telling first, for the time that there is.
places=("ViT-B-32 ViT-L-14:32 128" "ViT-B-16:32 128" "ViT-B-32:512")
if [ -n "${REHEARSE:-}" ]; then
    checks+=(--device cpu --waits_base tiny --profile_base tiny --batch_size 4 --grid_base null)
    steps+=(--device cpu --text_lengths 20)
    places=("tiny:2 3")
else
    checks+=(--device cuda)
    steps+=(--device cuda)
fi
# On CUDA "SHERL" keeps whole taps; "active values" is what it keeps on the CPU.
methods=("SHERL" "linear" "SHERL on tokens" "LoRA + checkpointing" "LoRA" "full" "full + checkpointing"
    "SHERL, active values" "SHERL, int8 taps" "SHERL, int8 taps, chunks of 8"
    "SHERL on tokens, int8 taps, chunks of 8" "SHERL, batch at once" "SHERL on tokens, batch at once"
    "SHERL, plain autograd" "SHERL, int8 taps, batch at once" "SHERL, chunks of 64" "SHERL on tokens, chunks of 32")
[ -z "${REHEARSE:-}" ] || methods=("SHERL" "LoRA")

# SECONDS counts the shell's own time. What is left after the checks goes to the steps, less what the last row may take.
timeout $((limit / 2)) "$python" "$root/benchmarks/gpu_checks.py" "${checks[@]}" || status=1
echo "checks: done after $SECONDS s"
for place in "${places[@]}"; do
    left=$((limit - SECONDS - 25))
    [ "$left" -gt 15 ] || { echo "no time for $place"; continue; }
    read -ra bases <<<"${place%%:*}"
    read -ra sizes <<<"${place##*:}"
    timeout $((left + 20)) "$python" "$root/benchmarks/training_step.py" "${steps[@]}" --seconds "$left" \
        --bases "${bases[@]}" --batch_sizes "${sizes[@]}" --methods "${methods[@]}" >"$output/table.md" || status=1
    echo "$place: done after $SECONDS s"
done
left=$((limit - SECONDS))
if [ -z "${REHEARSE:-}" ] && [ "$left" -gt 60 ]; then
    timeout "$left" "$python" "$root/benchmarks/compiled_blocks.py" --base ViT-L-14 --batch_size 128 --device cuda \
        --json "$output/compiled_blocks.json" || status=1
fi
cat "$output/table.md"
exit $status
