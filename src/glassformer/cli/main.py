"""The program `glassformer`: its verbs, and what an error looks like.

    0 done    1 failed    2 wrong usage    3 the answer is no    75 stopped but resumable    130 interrupted

A verb's file is imported when the verb is called, and torch when a verb needs it, so `--help` is instant.
An error is shown as one block; GLASSFORMER_TRACEBACK=1 shows where it came from as well.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from glassformer.errors import ConfigError, GlassformerError

_VERBS = {
    "train": "Train a model on text or on rows: a recipe, a file or a folder. Without arguments, the demo.",
    "generate": "Let a model go on with a prompt.",
    "translate": "Translate texts with an encoder-decoder, and measure how well.",
    "embed": "Turn texts into vectors with an encoder, and compare them.",
    "fill": "Let an encoder guess the hidden tokens of a text.",
    "classify": "Let a classifier tell which class a text is of.",
    "predict": "Say what a plain network makes of rows.",
    "calibrate": "Ask a plain network: says 70%, right 70%?",
    "score": "Measure how well a model predicts a text.",
    "look": "Look into one pass of a model: every number by its name.",
    "explain": "Explain one prediction from text to update, with the model's own numbers.",
    "lens": "See what each layer of a model would say, and why one token rather than another.",
    "heads": "Score every attention head: induction, previous token, sink, ...",
    "patch": "Find the numbers inside a model that carry its answer: activation patching, causal tracing.",
    "ablate": "Switch off parts of a model and see what it loses.",
    "view": "Look at one part: a neuron, the positions, the token vectors, the next token.",
    "blame": "Show whose fault the loss is: gradients of tokens, weights, heads and neurons, ranked.",
    "step": "Show what one optimiser step on a text would change.",
    "probe": "Measure every checkpoint of a run, and say when something formed.",
    "convert": "Write a model in another form: GGUF, Hugging Face's layout, or our own.",
    "runs": "List, show, verify and consolidate runs.",
    "text": "Look at text before training on it.",
    "scale": "Fit laws of loss to small runs.",
    "plan": "What a run will cost, before spending: time, memory, money, energy, failures.",
    "bench": "Measure this machine, and training on it.",
    "drill": "Rehearse disasters with a short copy of a run: kill, stop and damage it, and compare to the bit.",
    "doctor": "Check that this machine is ready, and say what to do where it is not.",
}
_CLOSED_PIPE, _INTERRUPTED = 141, 130  # what a shell reports for SIGPIPE and SIGINT


def build() -> App:
    """The program, its verbs not yet imported."""
    app = App(
        name="glassformer",
        help="A glass-box Transformer: train, open and use, with every number measured.",
        version=_version,
        version_flags=["--version"],
        help_format="plaintext",
        suppress_keyboard_interrupt=False,  # main gives it its exit code
        default_parameter=Parameter(negative=""),
    )
    for verb, help_ in _VERBS.items():
        app.command(f"glassformer.cli.{verb}:{verb}", name=verb, help=help_)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a model may write what a terminal cannot show
    try:
        answer = build()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except CycloptsError as error:
        return _fail(f"{error}\nSee: glassformer {' '.join([*(error.command_chain or ()), '--help'])}", 2)
    except GlassformerError as error:
        return _fail(_block(error), error.exit_code)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return _fail("Interrupted.", _INTERRUPTED)
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        ours = "This is a fault in glassformer. GLASSFORMER_TRACEBACK=1 shows where."
        return _fail(f"{what}\n{_shortage(error) or ours}", 1)


def _shortage(error: Exception) -> str | None:
    """What the machine has too little of, and what to do; None for any other error."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number == errno.EMFILE:
        import resource  # where this errno comes from, there it is

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"This process may have {most} files open at once. Raise that: ulimit -n 4096. The same command goes on."
    if number == errno.ENFILE:
        return "All processes together have as many files open as the machine allows (sysctl fs.file-max). End some."
    if number == errno.ENOMEM:
        return "Memory ran out. End other programs, raise the limit (ulimit -v, the job's), or take less at a time."
    return None


def _block(error: GlassformerError) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    return "\n".join(part.strip("\n") for part in (error.what, error.expected, error.do) if part)


def _fail(message: str, exit_code: int) -> int:
    if os.environ.get("GLASSFORMER_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exc()
    first, _, rest = message.partition("\n")
    print(f"{'stopped' if exit_code == 75 else 'error'}: {first}", file=sys.stderr)
    for line in rest.splitlines():
        print(line if line.startswith(" ") else f"  {line}", file=sys.stderr)
    return exit_code


def _version() -> str:
    from importlib.metadata import version

    return version("glassformer")
