"""How good and how fast a model is: perplexity, tasks, samples, latency."""

from .perplexity import Paired, Perplexity, paired, segment_nlls

__all__ = ["Paired", "Perplexity", "paired", "segment_nlls"]
