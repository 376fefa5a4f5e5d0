"""What members of a made-up cascade say, also where it is nothing."""

import numpy as np

from orchestrator.spec import CascadeSpec


def chosen_outputs(spec: CascadeSpec, rng: np.random.Generator, rows: int) -> list[np.ndarray]:
    """What each member is to say: float32 (n, k), half of it coarse, so that classes and votes tie."""
    outputs = []
    for member in spec.members:
        z = rng.integers(-3, 4, (rows, spec.classes)).astype(np.float32)
        fine = rng.random(rows) < 0.5
        z[fine] += rng.normal(size=(int(fine.sum()), spec.classes)).astype(np.float32)
        if member.output_kind == "probabilities":
            z = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        outputs.append(z.astype(np.float32))
    return outputs


def spoil(outputs: list[np.ndarray], rng: np.random.Generator) -> None:
    """Puts NaN, infinities and rows of -inf into some rows of each member."""
    for output in outputs:
        for value in (np.nan, np.inf, -np.inf):
            rows = rng.integers(len(output), size=4)
            output[rows, rng.integers(output.shape[1], size=4)] = value
        output[rng.integers(len(output), size=4)] = -np.inf
