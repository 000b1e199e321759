"""A run or a model folder -> a model that is ready to use, its weights frozen.

    model/  config.json        {"model_type": "glassformer", ...}, the fields of ModelConfig, and the names of classes
            model.safetensors  every weight under its name in model/stacks.py; a tied head is not stored twice
            tokenizer.json
            manifest.json      SHA-256 of each, checked first; a folder from elsewhere may lack it

A run that is not finished has no `model/` yet: then the newest whole checkpoint is taken, and
`Loaded.warnings` says so. Names and shapes are read from the file's header and compared with the config
before any memory is taken. Only these names inside the folder are ever opened.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import safetensors
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glassformer import configs
from glassformer.errors import CheckpointError, ModelError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import stacks
from glassformer.model.stacks import Decoder, Encoder, EncoderDecoder, build, count_parameters
from glassformer.model.transformer import Transformer
from glassformer.run import exports
from glassformer.run.checkpoints import load_newest
from glassformer.run.folder import RECIPE, Run
from glassformer.run.sealed import MANIFEST
from glassformer.run.tensors import read_tensors
from glassformer.text.tokenizer import Tokenizer
from glassformer.units import show_count

Precision = Literal["fp32", "bf16"]
M = TypeVar("M", Decoder, Encoder, EncoderDecoder)

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
LABELS = "labels.json"
"""In a run: the names of the classes, for its checkpoints."""
NETWORK = "glassformer-network"
"""`model_type` of a plain network, which `use/predict.py` loads."""

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

_MOST = {
    "vocab_size": 2**28,
    "width": 2**20,
    "layers": 2**16,
    "num_heads": 2**16,
    "context": 2**26,
    "ff_width": 2**24,
}
"""Sizes far above any model there is. A config beyond them is damaged or hostile."""

_LARGEST_TABLE = 2**28
"""Numbers in a table of positions, which is computed and so not bounded by the size of the file."""


@dataclass(frozen=True, slots=True, repr=False)
class Loaded:
    """A model in use: evaluation mode, weights frozen."""

    model: Transformer
    tokenizer: Tokenizer
    config: ModelConfig
    path: Path
    warnings: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """The names of the classes that a classifier tells apart, where they are known."""

    @property
    def decoder(self) -> Decoder:
        """The model, which must be one that writes on from a text."""
        return self._member(Decoder, "a decoder, which writes on from a text")

    @property
    def encoder(self) -> Encoder:
        """The model, which must be one that reads a text whole."""
        return self._member(Encoder, "an encoder, which reads a text whole")

    @property
    def translator(self) -> EncoderDecoder:
        """The model, which must be one that reads one text and writes another."""
        return self._member(EncoderDecoder, "an encoder-decoder, which reads one text and writes another")

    def _member(self, kind: type[M], what: str) -> M:
        if not isinstance(self.model, kind):
            raise ModelError(
                f"The model in {self.path} is of kind '{self.config.kind}'.", expected=f"This needs {what}.",
                do="decoder: generate, score; encoder-decoder: translate; encoder: embed, classify.",
            )  # fmt: skip
        return self.model

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.weight.dtype

    def __repr__(self) -> str:
        size, dtype = show_count(count_parameters(self.model)), str(self.dtype).removeprefix("torch.")
        return f"Loaded('{self.path}', {size} parameters, {dtype}, {self.device})"


def load(path: str | Path, *, precision: Precision = "fp32", device: str | torch.device = "cpu") -> Loaded:
    """The model of a run, of a folder that `save_model` wrote or of Hugging Face's layout, or of a `.gguf` file.

    `bf16` halves the bytes of the weights, on which the speed of writing hangs; its results differ from those
    of `fp32` in the third digit.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"There is no precision {precision!r}.", expected="It can be 'fp32' or 'bf16'.")
    path = Path(path).expanduser()
    _refuse_network(path)
    if is_gguf(path):
        from glassformer.use.gguf import open_gguf  # which is built on this room

        return open_gguf(path, precision=precision, device=device)
    if not (path / RECIPE).exists():
        if model_type(path) not in (None, "glassformer"):
            from glassformer.use.pretrained import from_pretrained  # which is built on this room

            return from_pretrained(path, precision=precision, device=device)
        return _from_folder(path, path, precision, device)
    if (path / "model").is_dir():
        return _from_folder(path / "model", path, precision, device)
    return _from_checkpoint(Run.open(path), precision, device)


def save_model(
    folder: Path, model: Transformer, tokenizer: Tokenizer, *, classes: Sequence[str] = ()
) -> Path:
    """Write a model folder, in one step, from which `load` gives the same weights to the bit. `classes` are the names
    of what a classifier tells apart."""
    check_replaceable(folder)
    about: dict[str, Any] = {"model_type": "glassformer", "architectures": [type(model).__name__]}
    config = {**about, **model.config.model_dump(mode="json")}
    if classes:
        config["class_names"] = list(classes)
    with tempfile.TemporaryDirectory() as beside:
        tokenizer.save(Path(beside) / TOKENIZER)
        content = (Path(beside) / TOKENIZER).read_bytes()
    return exports.save_model(
        folder, config=config, tensors=dict(model.named_parameters()), tokenizer=content
    )


def check_replaceable(folder: Path) -> None:
    """A folder is replaced as a whole: only a new or empty one, or one that holds a model."""
    if folder.exists() and not (
        folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))
    ):
        raise UsageError(
            f"{folder} exists and is no model folder.",
            expected="It would be replaced as a whole.",
            do="Give a new folder, or one that holds a model.",
        )


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over every weight's name, type, shape and bytes: the same until a bit of them changes."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _from_folder(folder: Path, path: Path, precision: str, device: str | torch.device) -> Loaded:
    check_files(folder)
    read = {CONFIG, WEIGHTS, TOKENIZER, MANIFEST}
    if damage := [str(found) for found in exports.verify_model(folder) if found.file in read]:
        raise CheckpointError(
            "The model is not what was written:\n" + "\n".join(f"  - {found}" for found in damage),
            do="\nPut back a copy of the folder, or export it again from its run.",
        )
    (config, classes), tokenizer = _read_config(folder / CONFIG), Tokenizer.load(folder / TOKENIZER)
    try:
        with safetensors.safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 # no mapping
            model = empty(config, tokenizer, shapes, origin=str(folder / WEIGHTS))
            fill(model, file.get_tensor, DTYPES[precision], device)
    except safetensors.SafetensorError:
        read_tensors(folder / WEIGHTS)  # says what is wrong with it
        raise
    return Loaded(model, tokenizer, config, path, classes=classes)


def _from_checkpoint(run: Run, precision: str, device: str | torch.device) -> Loaded:
    checkpoint = load_newest(run.checkpoints, only={"model"}, set_aside=False)
    if checkpoint is None or not (run.path / TOKENIZER).exists():
        raise ModelError(
            f"{run.path} has no model yet: neither model/ nor a checkpoint with its tokenizer.",
            do="Train until the first checkpoint, or give another run.",
        )
    tokenizer = Tokenizer.load(run.path / TOKENIZER)
    names = run.path / LABELS
    classes = tuple(json.loads(names.read_bytes())) if names.is_file() else ()
    fields = {"vocab": tokenizer.vocab_size, **run.recipe.get("model", {})}
    if classes:
        fields["classes"] = len(classes)
    config = configs.build(ModelConfig, fields, origin=str(run.path / RECIPE))
    tensors = checkpoint.tensors["model"]
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    model = empty(config, tokenizer, shapes, origin=str(checkpoint.path))
    fill(model, tensors.__getitem__, DTYPES[precision], device)
    found = tuple(f"Passed over a damaged checkpoint: {finding}." for finding in checkpoint.findings)
    unfinished = f"This run has no finished model yet; these are its weights at step {checkpoint.step}."
    return Loaded(model, tokenizer, config, run.path, (unfinished, *found), classes)


def model_type(folder: Path) -> str | None:
    """The family of model that its config names, if any."""
    try:
        return str(json.loads((folder / CONFIG).read_bytes())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_network(path: Path) -> bool:
    """Whether a run or a folder holds a plain network, which `load_network` opens."""
    recipe = Run.open(path).recipe if (path / RECIPE).exists() else {}
    return recipe.get("model", {}).get("kind") == "network" or model_type(path) == NETWORK


def _refuse_network(path: Path) -> None:
    """A plain network reads rows of numbers: it has no tokenizer, and nothing that takes a `Loaded` can use it."""
    if is_network(path):
        raise ModelError(
            f"{path} holds a plain network, which reads rows of numbers.", expected="A model of text.",
            do=f"Use it with: glassformer predict {path} ROWS, or in Python glassformer.load_network.",
        )  # fmt: skip


def is_gguf(path: Path) -> bool:
    """Whether it is to be opened as one GGUF file."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def check_files(folder: Path, weights: str = WEIGHTS) -> None:
    """Everything that is wrong with what lies there, before any of it is read."""
    if not folder.exists():
        raise ModelError(f"There is no {folder}.", do="List your runs with: glassformer runs list")
    if not folder.is_dir():
        if folder.suffix != ".safetensors":
            read_tensors(folder)  # a pickle is refused with what to do about it
        raise ModelError(
            f"{folder} is a file.", expected=f"Expected a folder with {CONFIG}, {WEIGHTS}, {TOKENIZER}."
        )
    missing = [name for name in (CONFIG, weights, TOKENIZER) if not (folder / name).is_file()]
    if not missing:
        return
    if weights in missing:
        for pickled in sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
            read_tensors(pickled)  # refused likewise
    split = f" The weights are split by {WEIGHTS}.index.json; join them into one file first."
    raise ModelError(
        f"{folder} lacks {', '.join(missing)}.",
        expected=f"Expected a run, or a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}.",
        do=split.strip() if (folder / f"{WEIGHTS}.index.json").exists() else "",
    )


def _read_config(file: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config, and the names of classes."""
    try:
        fields = json.loads(file.read_bytes())
        kind = fields.pop("model_type", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{file} is not a JSON object: {error}.", do="Put back a copy.") from None
    if kind != "glassformer":
        raise ModelError(
            f"{file} describes a model of type {kind!r}.", expected="Expected model_type 'glassformer'."
        )
    fields.pop("architectures", None)
    classes = tuple(str(name) for name in fields.pop("class_names", []))
    config = configs.build(ModelConfig, fields, origin=str(file))
    if classes and len(classes) != config.classes:
        raise ModelError(f"{file} names {len(classes)} classes for {config.classes}.", do="Put back a copy.")
    return config, classes


def empty(
    config: ModelConfig, tokenizer: Tokenizer, shapes: Mapping[str, Sequence[int]], *, origin: str
) -> Transformer:
    """The model of the config, without memory for weights, once the file is known to hold them."""
    problems = absurd(config, tokenizer, len(shapes))
    if not problems:
        with _WithoutMemory():
            model = build(config)
        expected = {name: list(weight.shape) for name, weight in model.named_parameters()}
        problems = compare(expected, shapes)
        if not problems:
            return model
    raise misfit(origin, problems)


class _WithoutMemory(TorchFunctionMode):
    """Layers made inside have weights without memory and without starting values; tables are computed. As on
    torch's own device "meta", but that loads torch's compiler to do nothing: more than a second, and 55 MB."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else settings["tensor"]
        if function is torch.empty:
            settings["device"] = "meta"
        return function(*args, **settings)


def absurd(config: ModelConfig, tokenizer: Tokenizer, num_tensors: int) -> list[str]:
    """What no file of `num_tensors` tensors can hold, found by arithmetic alone."""
    problems = [
        f"{name} is {getattr(config, name):,}; at most {most:,} can be right"
        for name, most in _MOST.items()
        if getattr(config, name) > most
    ]
    columns = config.head_width if config.positions == "rope" else 0
    columns = config.width if config.positions.startswith("sinusoidal") else columns
    if config.context * columns > _LARGEST_TABLE:
        problems.append(f"context {config.context:,} needs a table of {config.context * columns:,} positions")
    layers = sum(stack.layers for stack in stacks(config))
    if layers > num_tensors:
        problems.append(f"layers is {layers:,}, but there are only {num_tensors} tensors")
    if tokenizer.vocab_size > config.vocab_size:
        problems.append(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}"
        )
    return problems


def compare(expected: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Each tensor that is missing, not expected, or of another shape, by name."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - shapes.keys())]
    problems += [f"{name} is not expected" for name in sorted(shapes.keys() - expected.keys())]
    return problems + [
        f"{name} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in shapes and list(shapes[name]) != list(shape)
    ]


def misfit(origin: str, problems: Sequence[str]) -> ModelError:
    """The error that lists them."""
    listed = [f"  - {problem}" for problem in problems[:20]]
    more = [f"  - and {len(problems) - 20} more"] if len(problems) > 20 else []
    return ModelError(
        f"{origin} does not fit its config:\n" + "\n".join(listed + more),
        do="\nCheck that weights, config and tokenizer belong together.",
    )


def fill(
    model: Transformer, read: Callable[[str], Tensor], dtype: torch.dtype, device: str | torch.device
) -> None:
    """Give the model its weights. Each is copied: a mapped file could change under the model."""
    weights: dict[str, Any] = {}
    for name, _ in list(model.named_parameters()):
        weight = read(name)
        if not weight.is_floating_point():
            raise ModelError(f"{name} holds {weight.dtype}.", expected="Expected floating-point numbers.")
        # On a CPU one row times a float32 matrix is quicker when the matrix lies column by column: 1.2 x the
        # tokens per second at 124M parameters. In bfloat16 rows are quicker; large products do not care.
        by_columns = weight.ndim == 2 and dtype == torch.float32 and torch.device(device).type == "cpu"
        shape = weight.shape[::-1] if by_columns else weight.shape
        place = torch.empty(shape, dtype=dtype, device=device)
        weights[name] = (place.t() if by_columns else place).copy_(weight)
    model.load_state_dict(weights, assign=True, strict=False)
    if model.config.tied and model.config.head == "tokens":
        model.head.weight = model.embed.weight
    for name, table in list(model.named_buffers()):  # of positions: computed, not stored
        setattr(model, name, table.to(device))
    model.eval().requires_grad_(False)
