"""A SentencePiece model beside a checkpoint that has tokenizer.json alone, for llama.cpp's converter.

The converter takes Gemma's vocabulary from tokenizer.model, and Llama's with its scores only from there. A base that
was a GGUF file has none, nor have many fine-tuned models. tokenizer.json says the same where it is a BPE that falls
back to bytes: SentencePiece merges the pair of the highest score, tokenizer.json the pair of the first rule. So a
token's score is minus the number of the first rule that makes it. Whether a blank is put before a text goes into the
settings, where the converter looks for it.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...models.tokenizers import FILE, SETTINGS
from .making import run_or_refuse

MODEL = "tokenizer.model"

WRITE = """
import json, re, sys
from sentencepiece import sentencepiece_model_pb2 as sentencepiece
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
with open(task["from"], encoding="utf-8") as file:
    file = json.load(file)
bpe, score = file["model"], {}
for number, rule in enumerate(bpe["merges"]):
    score.setdefault("".join(rule.split(" ") if isinstance(rule, str) else rule), -float(number))
kinds = sentencepiece.ModelProto.SentencePiece
added = {token["id"]: token for token in file.get("added_tokens") or ()}
tokens = {number: token for token, number in bpe["vocab"].items()}
tokens |= {number: token["content"] for number, token in added.items()}
made = sentencepiece.ModelProto()
for id in range(max(tokens) + 1):
    token = tokens.get(id, f"[PAD{id}]")
    kind = kinds.NORMAL if id in tokens else kinds.UNUSED
    if id in added:
        kind = kinds.CONTROL if added[id]["special"] else kinds.USER_DEFINED
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        kind = kinds.BYTE
    if token == bpe.get("unk_token"):
        kind = kinds.UNKNOWN
    made.pieces.add(piece=token, score=score.get(token, -float(len(bpe["merges"]))), type=kind)
made.trainer_spec.model_type = sentencepiece.TrainerSpec.BPE
made.trainer_spec.byte_fallback = True
made.normalizer_spec.add_dummy_prefix = False
with open(task["to"], "wb") as file:
    file.write(made.SerializeToString())
print("RESULT{}")
"""


def add_sentencepiece(folder: Path, engine: str, work: Path, model: str) -> None:
    """Write tokenizer.model into a folder that the converter is given, where it lacks one and tokenizer.json says it.

    Other kinds of tokenizer have no such file.

    Raises:
        InputError: the engine's environment has no SentencePiece.
    """
    if (folder / MODEL).exists() or not (folder / FILE).exists():
        return
    file, settings = folder / FILE, folder / SETTINGS
    bpe: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("model") or {}
    if bpe.get("type") != "BPE" or not bpe.get("byte_fallback"):
        return
    run_or_refuse(engine, WRITE, {"from": str(file), "to": str(folder / MODEL)}, work, model)
    blank = Tokenizer.from_file(str(file)).encode("a", add_special_tokens=False).tokens[0].startswith("\u2581")
    values = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    settings.unlink(missing_ok=True)  # it may be a link to the checkpoint's own
    settings.write_text(json.dumps(values | {"add_prefix_space": blank}), encoding="utf-8")
