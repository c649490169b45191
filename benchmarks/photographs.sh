#!/usr/bin/env bash
# Compare every method that fits on photographs, with encoders that were really pre-trained (extra photos): three seeds, each
# method at its own learning rate, chosen on the validation split with a budget of two epochs per rate.
#
#   benchmarks/photographs.sh data/flickr8k runs/photographs [flag=value …]
#
# The first argument is a prepared dataset for retrieval (data_prep/from_folder.py). Made for a GPU, where several runs share
# the device (JOBS, default 4); not run yet. Run it again to continue.
set -euo pipefail
cd "$(dirname "$0")/.."
data="$1" output="$2"
shift 2

flags="\"base=photos\",\"data.root=$data\",\"head.pool=gpo\",\"batch_size=64\",\"epochs=8\",\"evaluate_every=2\""
flags="$flags,\"cache=true\",\"cache_test=true\""
for flag in "$@"; do flags="$flags,\"$flag\""; done
python tasks/compare.py --task retrieval --output "$output" --seeds 3 --jobs "${JOBS:-4}" --flags "[$flags]" \
    --kinds "linear,sherl,sherl:reduction=1,unipt,bitfit,lora:targets=attention,lora,full" \
    --search_rates 3e-4,1e-3,3e-3 --search_flags '["epochs=2"]'
