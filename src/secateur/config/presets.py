"""Names of the evaluation texts, and the length of their segments; `data.presets` puts the texts together."""

SEQ_LENS = (128, 1024, 2048)
"""128: LLM-Pruner, LoRAPrune; 1,024: short contexts; 2,048: GPTQ, SparseGPT, Wanda, FLAP."""
TEXTS = ("wikitext2", "wikitext2-unk", "ptb", "ptb-lines", "ptb-valid")
PRESET_SEQ_LENS = {f"{text}-{seq_len}": seq_len for seq_len in SEQ_LENS for text in TEXTS}
"""Preset -> tokens of its segments."""
