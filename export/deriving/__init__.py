"""Models that derive tensors: tokenizers and image decoders as Python models of a repository."""
