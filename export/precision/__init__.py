"""Members of lower precision, made from fp32 ones."""
