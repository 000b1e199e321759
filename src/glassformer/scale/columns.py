"""Which column of a table is which: by the names given, by our own, by the usual ones, and else a proposal.

    N=params,D=tokens,loss=val_loss        --columns, or `columns={"N": "params", ...}` in Python

A proposal is made of what a name contains (`_HINTS`) and of what the first line holds, and is never acted on: whoever
made the table says yes by giving it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from glassformer.errors import UsageError, nearest

KNOWN: dict[str, tuple[str, ...]] = {
    "N": ("n", "params", "parameters", "num_parameters", "n_params", "num_params", "model_size", "model_params",
          "total_params", "size"),
    "D": ("d", "tokens", "train_tokens", "training_tokens", "num_tokens", "n_tokens", "total_tokens", "tokens_seen"),
    "C": ("c", "flops", "flop", "compute", "train_flops", "training_flops", "total_flops", "c_6nd"),
    "loss": ("val_loss", "validation_loss", "eval_loss", "test_loss", "final_loss", "train_loss", "l", "nll"),
    "U": ("u", "unique_tokens", "unique"),
    "run": ("run_id", "run_name", "name", "id"),
    "warm": ("undecayed", "not_decayed", "hot"),
    "lr": ("learning_rate", "peak_lr", "max_lr"),
    "unit": ("loss_unit",),
    "tokenizer": (),
}  # fmt: skip
"""Column -> what else it is called, in small letters; each is looked for by its own name first."""
BITS_PER_BYTE = ("bpb", "bits_per_byte", "val_bits_per_byte")
_HINTS = {"loss": ("loss", "nll", "entropy", "cross", "bpb"), "C": ("flop", "compute", "budget"),
          "D": ("token", "seen", "data"), "N": ("param", "size", "non_emb", "weights")}  # fmt: skip
_NAMED = re.compile(r"isoflop-([0-9.]+e[+-]?[0-9]+)", re.I)


def find_columns(
    header: Iterable[str], given: Mapping[str, str], source: str, first: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our name -> the table's. `first` is the table's first line, for a proposal where names tell too little.

    Raises UsageError for a name that is not there, and where loss or two of N, D, C are not found.
    """
    names = list(header)
    unknown = [key for key in given if key not in KNOWN]
    if unknown:
        raise UsageError(f"There is no column {unknown[0]!r} to name;", expected=nearest(unknown[0], KNOWN))
    absent = [column for column in given.values() if column not in names]
    if absent:
        raise UsageError(f"{source} has no column {absent[0]!r};", expected=nearest(absent[0], names))
    found = dict(given)
    small = {name.strip().lower(): name for name in reversed(names)}
    for ours, others in KNOWN.items():
        if ours not in found:
            usual = next((small[name] for name in (ours.lower(), *others) if name in small), None)
            hit = ours if ours in names else usual
            if hit is not None and hit not in given.values():
                found[ours] = hit
    if "loss" not in found:
        bits = next((small[name] for name in BITS_PER_BYTE if name in small), None)
        found |= {} if bits is None else {"loss": bits}
    lacking = _lacking(found)
    if lacking:
        guess = propose(names, found, first or {})
        whole = not _lacking(found | guess)
        said = ",".join(f"{ours}={name}" for ours, name in guess.items())
        raise UsageError(
            f"{source} says nothing of {' and of '.join(lacking)}.",
            expected=f"Its columns are: {', '.join(names)}.",
            do=f"Is it this? --columns {said}" if guess and whole
            else f"Say which is which, for example --columns {said or 'N=params,D=tokens,loss=val_loss'}.",
        )  # fmt: skip
    return found


def propose(names: Iterable[str], found: Mapping[str, str], first: Mapping[str, str]) -> dict[str, str]:
    """What the columns might be that nobody knows by name: {ours: theirs}, for `--columns`."""
    free = [name for name in names if name not in found.values()]
    guess: dict[str, str] = {}
    wanted = [ours for ours in ("loss", "N", "D", "C") if ours not in found]
    for ours in wanted:
        for name in free:
            if any(hint in name.lower() for hint in _HINTS[ours]) and name not in guess.values():
                guess[ours] = name
                break
    for ours in wanted:  # by their numbers: a loss is a small one, N, D and C are large, the larger the later
        if ours in guess or (ours == "C" and {"N", "D"} <= {*found, *guess}):
            continue
        numbers = {name: number(first.get(name)) for name in free if name not in guess.values()}
        fits = {
            name: value for name, value in numbers.items()
            if (0.1 < value < 20 and value != round(value) if ours == "loss" else value > 1e4)
        }  # fmt: skip
        if fits:
            guess[ours] = next(iter(fits)) if ours == "loss" else min(fits, key=lambda name: fits[name])
    return guess


def named_budget(run: str) -> float | None:
    """The FLOPs that a run's name says, as Marin's do: isoflop-1e+19-d2048-L16-B1024-nemo."""
    found = _NAMED.search(run)
    return float(found[1]) if found else None


def number(text: str | None) -> float:
    """What a cell holds; nan where it is no number."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}.get(str(text).strip().lower(), math.nan)


def _lacking(found: Mapping[str, str]) -> list[str]:
    sizes = [name for name in ("N", "D", "C") if name in found]
    return [*(["loss"] if "loss" not in found else []), *(["two of N, D, C"] if len(sizes) < 2 else [])]
