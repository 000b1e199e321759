"""Muon on divided weights: it looks at whole matrices, of which each rank holds a part.

Matrices come in rounds of as many as there are ranks that hold one copy of the weights together. Each matrix is put
together, one rank of them makes it orthogonal, and every rank keeps its own part of what comes of it. So no rank holds
more than one round, in bfloat16, and the work is divided like the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from glassformer.train.optimizers import orthogonal
from glassformer.train.parallel.mesh import Mesh
from glassformer.train.parallel.tensors import Parts


def orthogonal_parts(matrices: Sequence[Tensor], mesh: Mesh, parts: Parts) -> Iterator[Tensor]:
    """Each matrix made orthogonal, divided as it was. All of one shape; all ranks of a copy take part.

    Rows may stand in another order than in the model: of a matrix with permuted rows the nearest orthogonal one has
    them permuted alike.
    """
    for start in range(0, len(matrices), mesh.parts):
        group = matrices[start : start + mesh.parts]
        mine = torch.zeros(group[0].shape, dtype=torch.bfloat16, device=group[0].device)
        for place, matrix in enumerate(group):
            whole = parts.closed(matrix)
            if place == mesh.part:
                mine = orthogonal(whole[None])[0]
        made = [torch.empty_like(mine) for _ in range(mesh.parts)]
        dist.all_gather(made, mine.contiguous(), group=mesh.parts_group)
        for matrix, whole in zip(group, made, strict=False):
            yield parts.cut(whole, matrix)
