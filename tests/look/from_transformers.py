"""transformers' models with weights large enough for an error to show, and ours with the same weights."""

from __future__ import annotations

from typing import Any

import torch

from glassformer.model import hub
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer


def drawn(model: Any, std: float = 0.2, seed: int = 0) -> Any:
    """Every weight from one normal distribution, but for tables that are a formula."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:
                weight.normal_(0.0, std, generator=generator)
    return model.eval()


def ours(model: Any) -> Transformer:
    """Our model with their weights, by way of the names in their files."""
    fields = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    head = (
        "embed_out" if fields["model_type"] == "gpt_neox" else "lm_head"
    )  # in memory NeoX's has another name
    state = {
        name.replace("lm_head", head): weight for name, weight in model.state_dict(keep_vars=True).items()
    }
    family, config = hub.family_of(fields), hub.read_config(fields, tensors=list(state))
    made = build(config).to(model.dtype)
    with torch.no_grad():
        for part in hub.parts(family, config):
            made.get_parameter(part.ours).copy_(part.join([state[one] for one in part.theirs]))
    return made.eval()
