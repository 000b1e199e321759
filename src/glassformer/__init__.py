"""A glass-box Transformer: train, open, use; every number measured.

    import glassformer as gf

    run = gf.train("my_texts/", overrides={"model.width": 256})     # a folder: runs/my_texts-1
    model = gf.load(run.path)
    print(gf.generate(model, "Once upon a time"))
    print(gf.score(model, "The cat sat on the mat.").bits_per_byte)
    gf.look(model, "The cat sat", "blocks.*.attn.pattern")

Each public name is loaded when it is first used, so that the import alone costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassformer.errors import GlassformerError
    from glassformer.look.ablate import Ablated, ablate
    from glassformer.look.attribution import Attribution, attribute
    from glassformer.look.backward import BlockBackward, block_backward
    from glassformer.look.blame import Blame, blame
    from glassformer.look.causal import CausalTrace, causal_trace
    from glassformer.look.embedding import EmbeddingMap, embedding_map
    from glassformer.look.explain import explain
    from glassformer.look.explanation import Explanation
    from glassformer.look.export import save_trace
    from glassformer.look.formation import Formation, probe
    from glassformer.look.heads import Heads, heads
    from glassformer.look.integrated import Integrated, integrated_gradients
    from glassformer.look.interop import attention_tuple, transformer_lens_names
    from glassformer.look.lens import Lens, lens
    from glassformer.look.neuron import NeuronSheet, loudest, neuron
    from glassformer.look.page import write_page
    from glassformer.look.patch import Patched, patch
    from glassformer.look.positions import PositionView, positions
    from glassformer.look.sampling import SamplingView, sampling_view
    from glassformer.look.step_view import StepView, step_view
    from glassformer.look.summary import Summary, summary
    from glassformer.look.trace import Trace, look
    from glassformer.model.config import ModelConfig
    from glassformer.model.mlp import Network
    from glassformer.model.network import NetworkConfig
    from glassformer.model.stacks import Decoder
    from glassformer.plan.allocate import BestSize, best_size
    from glassformer.plan.check import Checked, check_plan
    from glassformer.plan.make import plan
    from glassformer.plan.plan import Plan
    from glassformer.plan.quantity import Quantity
    from glassformer.run.folder import Run
    from glassformer.run.report import write_report
    from glassformer.scale.backtest import Backtest
    from glassformer.scale.design import Design
    from glassformer.scale.fit import Law, fit_law
    from glassformer.scale.forecast import Forecast, Forecaster
    from glassformer.scale.from_runs import open_forecaster, open_law, scale_points
    from glassformer.scale.isoflop import Allocation, allocation
    from glassformer.scale.ladder import ladder, plan_ladder
    from glassformer.scale.ladder_result import Ladder
    from glassformer.scale.law_file import save_law
    from glassformer.scale.next_run import NextRuns, next_runs
    from glassformer.scale.optimum import Optimum, optimum
    from glassformer.scale.points import Points
    from glassformer.scale.profile import NumberProfile
    from glassformer.scale.published import Published, published_law
    from glassformer.scale.repeats import Repeats, fit_repeats
    from glassformer.scale.report import allocation_report, forecast_report, law_report, repeats_report
    from glassformer.text.config import DataConfig, TokenizerConfig
    from glassformer.text.report import text_report
    from glassformer.text.table_config import TableConfig
    from glassformer.text.tokenizer import Tokenizer
    from glassformer.train.bundle import Reproduced, reproduce_fault
    from glassformer.train.doctor import checkup
    from glassformer.train.drill.rehearsal import drill
    from glassformer.train.drill.result import Drill
    from glassformer.train.loop import train, training
    from glassformer.train.parallel.rehearsal import Rehearsal, rehearse
    from glassformer.train.recipe import Recipe, load_recipe
    from glassformer.use.believe import (
        Reliability,
        apply_temperature,
        judge_predictions,
        open_table,
        reliability_of,
    )
    from glassformer.use.bleu import judge_translations
    from glassformer.use.classify import classify
    from glassformer.use.consolidate import Consolidated, consolidate
    from glassformer.use.embed import embed
    from glassformer.use.fill import fill
    from glassformer.use.generate import Generation, generate, stream
    from glassformer.use.gguf import save_gguf
    from glassformer.use.load import Loaded, load, save_model
    from glassformer.use.predict import Predictor, load_network, predict, save_network, save_predictions
    from glassformer.use.pretrained import from_pretrained, save_pretrained
    from glassformer.use.score import Score, score
    from glassformer.use.translate import Translation, translate

    __version__: str

__all__ = [
    "Ablated",
    "Allocation",
    "Attribution",
    "Backtest",
    "BestSize",
    "Blame",
    "BlockBackward",
    "CausalTrace",
    "Checked",
    "Consolidated",
    "DataConfig",
    "Decoder",
    "Design",
    "Drill",
    "EmbeddingMap",
    "Explanation",
    "Forecast",
    "Forecaster",
    "Formation",
    "Generation",
    "GlassformerError",
    "Heads",
    "Integrated",
    "Ladder",
    "Law",
    "Lens",
    "Loaded",
    "ModelConfig",
    "Network",
    "NetworkConfig",
    "NeuronSheet",
    "NextRuns",
    "NumberProfile",
    "Optimum",
    "Patched",
    "Plan",
    "Points",
    "PositionView",
    "Predictor",
    "Published",
    "Quantity",
    "Recipe",
    "Rehearsal",
    "Reliability",
    "Repeats",
    "Reproduced",
    "Run",
    "SamplingView",
    "Score",
    "StepView",
    "Summary",
    "TableConfig",
    "Tokenizer",
    "TokenizerConfig",
    "Trace",
    "Translation",
    "ablate",
    "allocation",
    "allocation_report",
    "apply_temperature",
    "attention_tuple",
    "attribute",
    "best_size",
    "blame",
    "block_backward",
    "causal_trace",
    "check_plan",
    "checkup",
    "classify",
    "consolidate",
    "drill",
    "embed",
    "embedding_map",
    "explain",
    "fill",
    "fit_law",
    "fit_repeats",
    "forecast_report",
    "from_pretrained",
    "generate",
    "heads",
    "integrated_gradients",
    "judge_predictions",
    "judge_translations",
    "ladder",
    "law_report",
    "lens",
    "load",
    "load_network",
    "load_recipe",
    "look",
    "loudest",
    "neuron",
    "next_runs",
    "open_forecaster",
    "open_law",
    "open_table",
    "optimum",
    "patch",
    "plan",
    "plan_ladder",
    "positions",
    "predict",
    "probe",
    "published_law",
    "rehearse",
    "reliability_of",
    "repeats_report",
    "reproduce_fault",
    "sampling_view",
    "save_gguf",
    "save_law",
    "save_model",
    "save_network",
    "save_predictions",
    "save_pretrained",
    "save_trace",
    "scale_points",
    "score",
    "step_view",
    "stream",
    "summary",
    "text_report",
    "train",
    "training",
    "transformer_lens_names",
    "translate",
    "write_page",
    "write_report",
]

_ROOMS = {
    "look.page": ["write_page"],
    "look.formation": ["Formation", "probe"],
    "errors": ["GlassformerError"],
    "text.config": ["DataConfig", "TokenizerConfig"],
    "text.report": ["text_report"],
    "text.table_config": ["TableConfig"],
    "text.tokenizer": ["Tokenizer"],
    "model.config": ["ModelConfig"],
    "model.mlp": ["Network"],
    "model.network": ["NetworkConfig"],
    "model.stacks": ["Decoder"],
    "run.folder": ["Run"],
    "run.report": ["write_report"],
    "use.classify": ["classify"],
    "use.consolidate": ["Consolidated", "consolidate"],
    "use.embed": ["embed"],
    "use.fill": ["fill"],
    "use.generate": ["Generation", "generate", "stream"],
    "use.gguf": ["save_gguf"],
    "use.load": ["Loaded", "load", "save_model"],
    "use.pretrained": ["from_pretrained", "save_pretrained"],
    "use.score": ["Score", "score"],
    "use.believe": ["Reliability", "apply_temperature", "judge_predictions", "open_table", "reliability_of"],
    "use.predict": ["Predictor", "load_network", "predict", "save_network", "save_predictions"],
    "use.bleu": ["judge_translations"],
    "use.translate": ["Translation", "translate"],
    "look.export": ["save_trace"],
    "look.summary": ["Summary", "summary"],
    "look.heads": ["Heads", "heads"],
    "look.trace": ["Trace", "look"],
    "look.embedding": ["EmbeddingMap", "embedding_map"],
    "look.neuron": ["NeuronSheet", "neuron", "loudest"],
    "look.positions": ["PositionView", "positions"],
    "look.sampling": ["SamplingView", "sampling_view"],
    "look.backward": ["BlockBackward", "block_backward"],
    "look.step_view": ["StepView", "step_view"],
    "look.attribution": ["Attribution", "attribute"],
    "look.lens": ["Lens", "lens"],
    "look.blame": ["Blame", "blame"],
    "look.integrated": ["Integrated", "integrated_gradients"],
    "look.explain": ["explain"],
    "look.explanation": ["Explanation"],
    "look.interop": ["attention_tuple", "transformer_lens_names"],
    "look.ablate": ["Ablated", "ablate"],
    "look.causal": ["CausalTrace", "causal_trace"],
    "look.patch": ["Patched", "patch"],
    "train.parallel.rehearsal": ["Rehearsal", "rehearse"],
    "train.recipe": ["Recipe", "load_recipe"],
    "train.bundle": ["Reproduced", "reproduce_fault"],
    "train.doctor": ["checkup"],
    "train.drill.rehearsal": ["drill"],
    "train.drill.result": ["Drill"],
    "train.loop": ["train", "training"],
    "scale.points": ["Points"],
    "scale.fit": ["Law", "fit_law"],
    "scale.isoflop": ["Allocation", "allocation"],
    "scale.repeats": ["Repeats", "fit_repeats"],
    "scale.from_runs": ["open_forecaster", "open_law", "scale_points"],
    "scale.law_file": ["save_law"],
    "scale.next_run": ["NextRuns", "next_runs"],
    "scale.optimum": ["Optimum", "optimum"],
    "scale.profile": ["NumberProfile"],
    "scale.published": ["Published", "published_law"],
    "scale.report": ["allocation_report", "forecast_report", "law_report", "repeats_report"],
    "scale.forecast": ["Forecast", "Forecaster"],
    "scale.backtest": ["Backtest"],
    "scale.design": ["Design"],
    "scale.ladder": ["ladder", "plan_ladder"],
    "scale.ladder_result": ["Ladder"],
    "plan.make": ["plan"],
    "plan.plan": ["Plan"],
    "plan.quantity": ["Quantity"],
    "plan.allocate": ["BestSize", "best_size"],
    "plan.check": ["Checked", "check_plan"],
}
_HOME = {name: f"{__name__}.{room}" for room, names in _ROOMS.items() for name in names}

_WITH_TORCH = ("use.", "look.", "train.loop", "train.bundle", "model.mlp", "scale.ladder")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = _fetch(name)
    return value


def _fetch(name: str) -> Any:
    home = _HOME[name]
    if home.startswith(tuple(f"{__name__}.{room}" for room in _WITH_TORCH)):
        from glassformer.train.launch import prepare_process

        prepare_process()  # these load torch, and threads must be settled before
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Verb(ModuleType):
    """A room named after its main function. Python puts the room at `gf.train` as soon as any file in it is
    imported, so the room itself has to answer a call: `gf.train(...)` calls `train` in `train/loop.py`."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return _fetch(self.__name__.rpartition(".")[2])(*arguments, **settings)


for _room in ("look", "plan", "train"):
    import_module(f"{__name__}.{_room}").__class__ = _Verb
