"""Keys and values of the tokens already read: each new token costs one position and not the whole text.

    bytes = 2 * layers * batch * kv_heads * context * d_head * bytes per number        (2: keys and values)

All of it is taken at once and never grows: what does not fit is an error, not a surprise later on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import ModelError
from glassformer.model.config import ModelConfig

New = Float[Tensor, "batch kv_head new head_size"]
All = Float[Tensor, "batch kv_head key head_size"]


class Cache:
    """Room for `positions` tokens (the model's context when not given) of `batch` texts of equal length."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int = 1,
        positions: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.positions = min(positions or config.context, config.context)
        shape = (2, batch, config.num_kv_heads, self.positions, config.head_width)
        self._layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.length = 0
        """Positions that every layer holds; the last layer's `extend` moves it on."""

    @property
    def num_bytes(self) -> int:
        return sum(store.nbytes for store in self._layers)

    def reorder(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these texts, in this order; one may be taken several times."""
        self._layers = [store.index_select(1, rows) for store in self._layers]

    def extend(self, layer: int, k: New, v: New) -> tuple[All, All]:
        """Keep the new keys and values; all of this layer, the new ones last, as views of the store."""
        store, start = self._layers[layer], self.length
        end = start + k.shape[2]
        if end > self.positions or k.shape[0] != store.shape[1]:
            raise ModelError(
                f"The cache has room for {self.positions} tokens of {store.shape[1]} texts; "
                f"{end} tokens of {k.shape[0]} were given.",
                do="Make a larger one, or set its length to 0 to begin anew.",
            )
        store[0, :, :, start:end] = k
        store[1, :, :, start:end] = v
        if layer == len(self._layers) - 1:
            self.length = end
        return store[0, :, :, :end], store[1, :, :, :end]
