"""The zoo's short names: the usual hub checkpoint of each, or its architecture with random weights."""

import dataclasses
import json

import torch

from export.sources.base import ExportOptions, LoadedModel, SourceRef
from export.sources.hf import identify_hf, image_px_of, loaded_from
from export.zoo import ZooEntry, entry_from_name, network_of
from orchestrator.errors import ExportError


def identify_zoo(what: str, options: ExportOptions) -> SourceRef:
    """Which weights a zoo name means.

    Raises:
        ExportError: there is no such name, or no checkpoint of it is known.
    """
    entry = entry_from_name(what)
    options = dataclasses.replace(options, resolution_px=options.resolution_px or entry.resolution_px)
    if options.random_weights:
        settings = {
            "config": entry.config(options.resolution_px).to_json_string(use_diff=True),
            "processor": json.dumps(entry.processor),
        }
        return SourceRef(
            text=f"zoo:{what}",
            name=what,
            files=settings,
            load=lambda: _random(entry, options),
            image_px=lambda: image_px_of(entry.processor, options, subject=f"zoo:{what}"),
        )
    if entry.hub_id is None:
        raise ExportError(
            f"zoo:{what}",
            got="no published checkpoint known",
            expected="hf:<folder> with its weights",
            fix="or `random_weights` for cost and speed work",
        )
    found = identify_hf(entry.hub_id, options)
    return dataclasses.replace(found, name=what)


def _random(entry: ZooEntry, options: ExportOptions) -> LoadedModel:
    torch.manual_seed(options.seed)
    network = network_of(entry, options.resolution_px).eval()
    return loaded_from(network, entry.processor, options, subject=f"zoo:{entry.name}")
