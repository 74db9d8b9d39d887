"""What quantising alone costs the dense model, beside which pruning should be judged.

    SECATEUR_DATA=/path/to/data python benchmarks/quality/quantised.py --json docs/results/quantised.json

Perplexity of the first tokens of WikiText-2 (raw) in the checkpoint's precision, in 8 bits (LLM.int8) and in 4 (NF4),
as `--load-in` holds a frozen base.
"""

import argparse
import json
from pathlib import Path

import torch

from secateur.architecture.quantised import loading_options, settle_
from secateur.data.presets import preset_text
from secateur.evaluation.perplexity import perplexity
from secateur.models.devices import compute_dtype, default_device, name_of, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.system.records import environment, write_json

PRESET, SEQ_LEN, TOKENS = "wikitext2-1024", 1024, 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source, dtype = resolve_model(given.model), compute_dtype("auto")
    text, text_record = preset_text(PRESET)
    tokens = torch.tensor(load_tokenizer(source)(text).input_ids[:TOKENS])
    found = {}
    for load_in in (None, "8bit", "4bit"):
        if load_in is None:
            model = widened(load_model(source), dtype)
        else:
            options = loading_options(load_in, dtype, default_device())
            model = load_model(source, dtype=name_of(dtype), quantising=options)
            settle_(model)
        measured = perplexity(model, tokens, seq_len=SEQ_LEN, dtype=dtype).to_dict()
        found[load_in or "as it is"] = measured
        print(f"{load_in or 'as it is':9} {measured['perplexity']:.2f}")
    if given.json:
        record = {"model": given.model, "text": text_record, "tokens": TOKENS, "perplexity": found}
        write_json(given.json, record | {"environment": environment()})
        print(json.dumps(text_record))


if __name__ == "__main__":
    main()
