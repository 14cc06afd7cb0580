#!/usr/bin/env bash
# From slides with labels to a better tile encoder, and what became of it. README.md explains.
#     walk.sh [DATA] [OUT]
set -euo pipefail

EXAMPLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export EXAMPLE
. "$EXAMPLE/../steps.sh"
begin "${1:-${TIAFT_DATA:-$EXAMPLE/../../../shared/data}}" "${2:-walk-histotransfer}"

# Slides whose label is known to be "at least three tiles show tumour", and an encoder

step new/labels.csv '
python "$EXAMPLE/plant_bags.py" "$DATA" .'

step encoder.safetensors '
tiaft models create encoder.safetensors --backbone mobilenetv2_100 \
    --init "$DATA/weights/mobilenetv2_100.imagenet.safetensors" --backbone-arg pad_type=same \
    --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --tile-size 150 --mpp 0.495'

step models/mobilenet.safetensors '
tiaft models add mobilenet encoder.safetensors'

# Tiles to features, and features to classes of slides

step features/summary.csv '
tiaft extract learn/slides/*.tiff --model mobilenet --patients learn/patients.csv --no-mask \
    --out features'

step mil/summary.json '
tiaft probe mil features --labels learn/labels.csv --folds 3 --repeats 1 --permutations 0 \
    --epochs 10 --workers 2 --out mil'

step maps/report.html '
tiaft histotransfer maps mil features --slides learn/slides --count 6 --out maps'

step always '
python "$EXAMPLE/check_attention.py" mil features learn/truth.csv'

# The labels of slides make the encoder better

step models/mobilenet-topk.safetensors '
tiaft histotransfer tune features --attention mil --slides learn/slides -k 8 --epochs 4 \
    --register mobilenet-topk --out topk'

# What became of it, on patients that it has never seen

step compare/report.html '
tiaft histotransfer compare new/slides/*.tiff --labels new/labels.csv \
    --patients new/patients.csv --no-mask --encoder mobilenet --encoder mobilenet-topk \
    --encoder shallow=mobilenet:T3 --encoder untrained=mobilenet@random --repeats 1 \
    --epochs 10 --workers 2 --out compare'

step cka/report.html '
tiaft histotransfer cka "$DATA/kather2016" --model mobilenet --model mobilenet-topk \
    --count 200 --out cka'

# Its name in a script for TIAToolbox

step always '
python "$EXAMPLE/in_tiatoolbox.py" mobilenet-topk new/slides/*.tiff'

echo
echo "look at mil/report.html, maps/report.html, topk/report.html, compare/report.html and"
echo "cka/report.html in $PWD"
