"""A result in whole numbers of 8 or 4 bits, as transformers and vLLM read it (compressed-tensors)."""
