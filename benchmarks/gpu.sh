#!/bin/bash
# What a machine with a GPU has to say of secateur, in ten minutes and one command:
#
#     benchmarks/gpu.sh                        # all sections, into build/gpu
#     benchmarks/gpu.sh FOLDER                 # or into another folder
#     benchmarks/gpu.sh FOLDER steps prune     # some
#     benchmarks/gpu.sh --tiny FOLDER          # the same with tiny shapes, here on the CPU
#
# Needs torch, transformers and PEFT; what else is missing of the packages is installed once. FOLDER then holds
# report.md, report.json, and for each section its output and its own records. Each section has a limit of time, and
# one that fails leaves the others: benchmarks/cost/gpu.py lists them. PYTHON names another Python.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=false
if ! "$python" -c "import secateur.runs.prune" 2>/dev/null; then
  echo "some of secateur's packages are missing: installing them"
  timeout 120 "$python" -m pip install -qq --disable-pip-version-check "$here" || echo "pip failed: going on without"
fi
exec "$python" "$here/benchmarks/cost/gpu.py" "$@"
