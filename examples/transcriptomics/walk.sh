#!/usr/bin/env bash
# From tiles and an expression table to tile encoders that know of genes. README.md explains.
#     walk.sh [DATA] [OUT]
set -euo pipefail

EXAMPLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export EXAMPLE
. "$EXAMPLE/../steps.sh"
begin "${1:-${TIAFT_DATA:-$EXAMPLE/../../../shared/data}}" "${2:-walk-transcriptomics}"

# Patients whose genes are known to depend on their tissues, or on nothing, and an encoder

step stroma.csv '
python "$EXAMPLE/plant_genes.py" "$DATA" .'

step encoder.safetensors '
tiaft models create encoder.safetensors --backbone mobilenetv2_100 \
    --init "$DATA/weights/mobilenetv2_100.imagenet.safetensors" --backbone-arg pad_type=same \
    --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --tile-size 150 --mpp 0.495'

step models/mobilenet.safetensors '
tiaft models add mobilenet encoder.safetensors'

# What the table says of whom

step expression/expression.csv '
tiaft transcriptomics expression expression.tsv.gz --slides tiles --genes genes.txt \
    --out expression'

# The encoder learns from it, in two ways

step models/mobilenet-direct.safetensors '
tiaft transcriptomics tune learn.csv --expression expression.tsv.gz --genes genes.txt \
    --objective direct --train head --set head=mlp --set width=64 --init mobilenet \
    --mpp 0.495 --tiles 8 --epochs 60 --lr 1e-3 --test-share 0 \
    --register mobilenet-direct --out direct'

step models/mobilenet-contrastive.safetensors '
tiaft transcriptomics tune learn.csv --expression expression.tsv.gz --genes genes.txt \
    --objective contrastive --train head --set head=mlp --set width=64 --init mobilenet \
    --mpp 0.495 --tiles 8 --epochs 60 --lr 1e-3 --test-share 0 \
    --register mobilenet-contrastive --out contrastive'

# What they are worth, on patients of other slides

step tasks.csv '
cp "$EXAMPLE/tasks.csv" .'

step evaluation/report.html '
tiaft transcriptomics evaluate tasks.csv --model mobilenet --model mobilenet-direct=mobilenet \
    --model mobilenet-contrastive=mobilenet --leave-out direct --leave-out contrastive \
    --unmatched drop --repeats 2 --out evaluation'

step retrieval/retrieval.csv '
tiaft transcriptomics retrieve tiles --run contrastive --expression expression.tsv.gz \
    --base mobilenet --out retrieval'

step frozen.npz '
tiaft features new.csv --model mobilenet --out frozen.npz'

step contrastive.npz '
tiaft features new.csv --model mobilenet-contrastive --out contrastive.npz'

step embedding/embedding.png '
tiaft transcriptomics embed frozen=frozen.npz contrastive=contrastive.npz \
    --labels stroma.csv --out embedding'

# Their names in a script for TIAToolbox

step always '
python "$EXAMPLE/in_tiatoolbox.py" mobilenet-contrastive tiles/*/00_*.webp'

echo
echo "look at direct/report.html, contrastive/report.html, evaluation/report.html and"
echo "embedding/embedding.png in $PWD"
