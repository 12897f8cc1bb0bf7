#!/usr/bin/env bash
# Compiles a model and refuses the result when it is too large or too slow. Needs jq.
#   compile.sh MODEL.onnx ARTIFACT_DIR [MAX_LIBRARY_BYTES [MIN_SPEEDUP]]
set -uo pipefail

model=$1 artifact=$2 max_bytes=${3:-50000000} min_speedup=${4:-1}

lwc compile "$model" -o "$artifact" --force --json >compile.json
case $? in
    0) ;;
    4) echo "::warning::$model uses something lwc does not handle; it goes on as ONNX" >&2; exit 0 ;;
    10) echo "wrong code: report it with $model" >&2; exit 1 ;;
    *) exit 1 ;; # lwc has said why on stderr
esac

jq -r '.layers[] | [.node, .format, .density, .why] | @tsv' compile.json
bytes=$(jq '.files | to_entries | map(select(.key | endswith(".so")).value.bytes) | add' compile.json)
if ((bytes > max_bytes)); then
    echo "the library has $bytes bytes, the limit is $max_bytes" >&2
    exit 1
fi

lwc bench "$artifact" --against "$model" --json >bench.json || exit 1
jq -e --argjson least "$min_speedup" '.speedup >= $least' bench.json >/dev/null || {
    echo "only $(jq .speedup bench.json) times as fast as ONNX Runtime, wanted $min_speedup" >&2
    exit 1
}
echo "$artifact: $bytes bytes, $(jq .speedup bench.json) times as fast as ONNX Runtime"
