"""Members of lower precision, made from fp32 ones."""

# Share of rows whose top-1 has to stay. Eight-bit networks of a thousand classes that lose less than a point of
# accuracy still change one top-1 in twenty or so, between classes that were nearly tied. One that changes more
# than one in ten has lost points.
MIN_AGREEMENT = 0.9
MIN_AGREEMENT_HELP = (
    "Smallest share of rows with the same top-1 as in fp32; a member of lower precision below it is not written. "
    f"Default {MIN_AGREEMENT}, and none for random weights. The share itself is compared, not the lower end of "
    "its 95 % interval, which few rows put far below it; the interval is printed."
)
