"""What the fresh process runs that reads a checkpoint back: Python source, which imports nothing of secateur."""

TOKENIZER = '''
def tokenizer_fault(folder, wanted):
    """The first probe that the tokenizer of a folder does not read as the run's did; None where there is none."""
    if wanted is None:
        return None
    reader = getattr(transformers, wanted["reader"])
    tokenizer = reader.from_pretrained(folder, trust_remote_code=wanted["trust"])
    for text, ids in zip(wanted["texts"], wanted["ids"]):
        found = list(tokenizer(text)["input_ids"])
        if found != ids:
            return f"its tokenizer reads {text!r} as {found[:12]}, the run's as {ids[:12]}"
    return None
'''

CHILD = (
    r'''
import json, sys, zlib

class NoSecateur:
    """The checkpoint must load where secateur is not installed."""
    def find_spec(self, name, path=None, target=None):
        if name == "secateur" or name.startswith("secateur."):
            raise ImportError("secateur is off limits here")

sys.meta_path.insert(0, NoSecateur())
import torch
from safetensors.torch import load_file
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils import logging

'''
    + TOKENIZER
    + r"""
logging.set_verbosity_error()
logging.disable_progress_bar()
results = []
with open(sys.argv[1], encoding="utf-8") as file:
    jobs = json.load(file)
for job in jobs["jobs"]:
    torch.set_num_threads(jobs["threads"])
    saved = load_file(job["probe"])
    config = AutoConfig.from_pretrained(job["folder"], trust_remote_code=job["remote_code"])
    model, info = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_pretrained(
        job["folder"], dtype="auto", trust_remote_code=job["remote_code"], output_loading_info=True
    )
    model.to(job["device"]).eval()
    with torch.inference_mode():
        ids = saved["ids"].to(job["device"])
        both = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        logits = model(ids, use_cache=False, **both).logits.cpu().double()
        expected = saved["logits"].double()
        scale = expected.abs().max().item()
        longest = getattr(config, "max_position_embeddings", None) or 24
        more = min(8, max(1, longest - 1))
        prompt = ids[:, :max(1, min(16, longest - more))]
        # Settings that ship with the model (repetition penalty, beams, suppressed tokens, end tokens) would choose
        # other tokens than the argmax, which is what generation without the cache is compared by.
        start = getattr(config, "decoder_start_token_id", None)
        model.generation_config = type(model.generation_config)(decoder_start_token_id=start)
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=more, do_sample=False, pad_token_id=0,
            use_cache=True,
        )
        if config.is_encoder_decoder:
            start, again = 1, model(prompt, decoder_input_ids=written[:, :-1], use_cache=False).logits.double()
        else:
            start = prompt.shape[1]
            again = model(written[:, :-1], use_cache=False).logits[:, start - 1:].double()
        chosen = again.gather(2, written[:, start:, None]).squeeze(2)
        greedy_gap = (again.amax(2) - chosen).max().item()
        checksum = 0
        for name, weight in model.named_parameters():
            data = weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            checksum ^= zlib.crc32(data, zlib.crc32(name.encode()))
        alike = logits.shape == expected.shape
        p, q = expected.log_softmax(-1), logits.log_softmax(-1)
    results.append({
        "tokenizer": tokenizer_fault(job["folder"], job["tokenizer"]),
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "missing": sorted(info["missing_keys"]),
        "shape_differs": not alike,
        "difference": (logits - expected).abs().max().item() if alike else float("inf"),
        "kl": (p.exp() * (p - q)).sum(-1).mean().item() if alike else float("inf"),
        "scale": scale,
        "greedy_gap": greedy_gap,
        "checksum": checksum,
    })
print("RESULT" + json.dumps(results))
"""
)

ADAPTER = (
    """
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import load_file
import transformers
from transformers import AutoModelForCausalLM
"""
    + TOKENIZER
    + """
with open(sys.argv[1], encoding="utf-8") as file:
    job = json.load(file)
torch.set_num_threads(job["threads"])
saved = load_file(job["probe"])
base = AutoModelForCausalLM.from_pretrained(
    job["base"], dtype=getattr(torch, job["dtype"]), trust_remote_code=job["trust_remote_code"], **job["options"])
base.config.return_dict, base.config.output_attentions = True, False
model = PeftModel.from_pretrained(base, job["folder"]).eval()
with torch.inference_mode():
    logits = model(input_ids=saved["ids"], use_cache=False).logits.double()
ranks = {n.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): p.shape[0]
         for n, p in model.named_parameters() if ".lora_A." in n}
expected = saved["logits"].double()
print("RESULT" + json.dumps({"difference": (logits - expected).abs().max().item(),
                             "scale": expected.abs().max().item(), "ranks": ranks,
                             "tokenizer": tokenizer_fault(job["folder"], job["tokenizer"])}))
"""
)
