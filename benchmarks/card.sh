#!/usr/bin/env bash
# Everything that a GPU alone can show, in eight minutes, without a network and without installing anything:
#   bash benchmarks/card.sh                              to benchmarks/results/<card>/
#   bash benchmarks/card.sh --cpu --output FOLDER        a toy of it, to see that this script works
# CARD_PICTURES=train.zip names CIFAR-10's training pictures, a zip of folders of classes; else pictures are drawn.
# The tests of tests/cuda, the throughput of configs/cifar10.yaml, and two minutes of its training with a grid. A part
# that fails or takes too long is told of, and the others still run; it ends with 1 then.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

device=cuda output=
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) device=cpu ;;
        --output) output=${2:?--output: a folder is missing}; shift ;;
        *) echo "card.sh: $1: no such option: --cpu, --output FOLDER" >&2; exit 2 ;;
    esac
    shift
done
python=$(command -v python || command -v python3) || { echo "card.sh: there is no Python" >&2; exit 1; }
export PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export CUBLAS_WORKSPACE_CONFIG=:4096:8 WANDB_MODE=disabled WANDB_SILENT=true PYTHONUNBUFFERED=1
"$python" benchmarks/card.py check --device "$device" || exit 1
[ -n "$output" ] || { [ "$device" = cpu ] && echo "card.sh: --cpu: give --output FOLDER" >&2 && exit 2; }
output=${output:-$("$python" benchmarks/card.py folder)}
mkdir -p "$output" && output=$(cd "$output" && pwd) || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

equal=diffusers-equal
"$python" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("diffusers") is None)' || equal=
[ -n "$equal" ] || echo "card.sh: diffusers is not installed: its network is left out of the throughput"

# part NAME SECONDS COMMAND…: runs it, at most so long; writes down how it ended and how long it took
part() {
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    printf '\n\033[1m%s\033[0m (at most %d s)\n' "$name" "$limit"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$output/$name.log"
    local code=${PIPESTATUS[0]}
    echo "$name $code $((SECONDS - began)) $limit" >> "$work/parts"
    printf '%s: %s after %d s\n' "$name" "$([ "$code" = 0 ] && echo done || echo "failed ($code)")" $((SECONDS - began))
}

fit=(fit --config configs/cifar10.yaml --config configs/overlays/gpu.yaml --data card_data.Pictures
    --trainer.logger null --trainer.callbacks null --trainer.default_root_dir "$work/run" --trainer.num_sanity_val_steps 0)
if [ "$device" = cuda ]; then
    part tests 100 "$python" -m pytest -m cuda -n 0 -p no:cacheprovider --junitxml "$work/tests.xml" tests/cuda
    part throughput 220 "$python" benchmarks/throughput.py --recipe cifar10 --device cuda --batch_size 256 \
        --seconds 1 --rounds 3 --variants bf16,compiled,channels_last,autotuned --threads 8 --systems "$equal" --output "$work"
    part training 125 "$python" -m diffusion_lightning "${fit[@]}" --trainer.max_time 00:00:01:30 --trainer.max_epochs 32
    part grid 35 "$python" -m diffusion_lightning sample --ckpt_path "$work/run/cifar10" --num 100 --output "$output/samples.png"
else
    export CUDA_TESTS_ON=cpu
    toy=(--trainer.accelerator cpu --model.network.init_args.channels '[8, 16]' --model.network.init_args.embed_dim 16
        --data.init_args.batch_size 32 --model.sampler.init_args.steps 3 --trainer.log_every_n_steps 5)
    part tests 150 "$python" -m pytest -m cuda -n 0 -p no:cacheprovider --junitxml "$work/tests.xml" tests/cuda
    part throughput 120 "$python" benchmarks/throughput.py --recipe cifar10 --no-compile --shrink 16 \
        --seconds 0.5 --rounds 1 --threads 1 --variants channels_last --systems "$equal" --output "$work"
    part training 90 "$python" -m diffusion_lightning "${fit[@]}" "${toy[@]}" --trainer.max_time 00:00:00:15
    part grid 60 "$python" -m diffusion_lightning sample --ckpt_path "$work/run/cifar10" --num 16 --output "$output/samples.png"
fi
"$python" benchmarks/card.py report --work "$work" --output "$output" --device "$device"
