"""What the commands can be asked: arguments and options, and those of a Recipe made from the Recipe itself."""

import json
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from mopeq_hub.errors import UsageError
from mopeq_hub.recipe import Recipe
from mopeq_hub.recipes import budgets_of, choices_given, choices_of, with_default

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, or owner/name or owner/name@revision on the Hub.")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `quantize` left.")]
DestArgument = Annotated[str, typer.Argument(metavar="DEST", help="A Hub repo owner/name, or a folder.")]

QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        help="JSON lines to measure fidelity and accuracy on.",
        show_default="bundled pictures and prompts",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="JSON lines for `gptq`, `signround` and signals; best others than --questions.",
        show_default="bundled pictures and prompts",
    ),
]
FidelityTokens = Annotated[
    int,
    typer.Option(
        "--fidelity-tokens", help="Tokens of the questions that fidelity is measured on, from the first; 0 for all."
    ),
]
Compare = Annotated[
    bool | None,
    typer.Option("--compare/--no-compare", help="Measure uniform widths too.", show_default="for models up to 1 GB"),
]
BenchmarkNames = Annotated[
    str | None,
    typer.Option(
        "--benchmarks",
        help="Asked of both models by lmms-eval (`pip install 'mopeq-hub[eval]'`), with commas: MME, TextVQA, DocVQA, "
        "MMMU, InfoVQA, AI2D, RealWorldQA, ScienceQA, BLINK, `paper` for all of these, or tasks of lmms-eval.",
        show_default="none",
    ),
]
BenchmarkLimit = Annotated[
    int, typer.Option("--benchmark-limit", help="Questions of each benchmark's tasks, from the first; 0 for all.")
]
BenchmarkTasks = Annotated[
    Path | None,
    typer.Option("--benchmark-tasks", metavar="DIR", help="Task files for lmms-eval that --benchmarks may name, too."),
]
Space = Annotated[
    bool, typer.Option("--space/--no-space", help="Publish the Space that shows both models side by side.")
]
Private = Annotated[bool, typer.Option("--private", help="Create new repos as private ones.")]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Let go of every shard of a Hub model once it is quantized and sent.",
        show_default="where the disk is too small for the whole",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Do everything but the push.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="Who measures and quantizes shards: `local`, `ray`, or `jobs` on the Hub.")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="Of an existing Ray cluster.", show_default="one is started here")
]
Flavor = Annotated[str | None, typer.Option("--flavor", help="Machine of `jobs`.", show_default="cpu-upgrade")]
Timeout = Annotated[str | None, typer.Option("--timeout", help="Of `jobs`, such as 90m or 2d.", show_default="6h")]
Signals = Annotated[
    str | None,
    typer.Option("--signals", help="With commas; `fisher` is `fisher:own,fisher:calibration`.", show_default="all"),
]
Allocators = Annotated[
    str | None,
    typer.Option("--allocators", help="With commas, of `kmeans`, `rank` and `knapsack`.", show_default="all"),
]
Budgets = Annotated[str, typer.Option("--budgets", help="With commas, each as for `--budget` of publish.")]
Bits = Annotated[str, typer.Option("--bits", help="Widths that experts may get.")]
GroupSize = Annotated[int, typer.Option("--group-size", help="Consecutive weights that share a scale.")]
Granularity = Annotated[
    str, typer.Option("--granularity", help="What one width covers under a budget: `expert`, `projection` or `layer`.")
]
RestBits = Annotated[
    int, typer.Option("--rest-bits", help="Width of the text model's other linear layers; 16 leaves them as they are.")
]
Initial = Annotated[
    str | None,
    typer.Option("--initial", help="Of the signal `router`: an earlier checkpoint, as MODEL; only routers are read."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Where it goes; what was measured there is kept.", show_default="./studies/{name}"
    ),
]
Truth = Annotated[
    bool | None,
    typer.Option(
        "--truth/--no-truth",
        help="Quantize each expert alone at each width, the ground truth.",
        show_default="where it takes up to 30 minutes",
    ),
]
Accuracy = Annotated[
    bool, typer.Option("--accuracy/--no-accuracy", help="Let each bit map answer the --questions, too.")
]
Sign = Annotated[
    str | None,
    typer.Option(
        "--sign",
        metavar="oidc|KEY.pem",
        help="Sign it: with the identity of this workflow run, or with a private key.",
        show_default="unsigned",
    ),
]
Key = Annotated[
    Path | None, typer.Option("--key", metavar="PUBLIC.pem", help="Public key that the publication is to be signed by.")
]
Identity = Annotated[
    str | None, typer.Option("--identity", help="Who is to have signed it, such as a workflow's address or an e-mail.")
]
IdentityProvider = Annotated[
    str | None, typer.Option("--identity-provider", help="Address of the OIDC provider that vouches for --identity.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model, where transformers does not have its kind. Read it first.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

CatalogArgument = Annotated[
    str,
    typer.Argument(
        metavar="CATALOG",
        envvar="MOPEQ_CATALOG",
        help="A YAML list of publications, each with model, to and, where wanted, recipe, questions, space, private.",
    ),
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="DEST", help="Of these entries; may be repeated.")]
LookOnly = Annotated[bool, typer.Option("--dry-run", help="Say what is stale and why; publish nothing.")]
Issue = Annotated[
    bool,
    typer.Option("--issue", help="In a GitHub workflow: keep one issue open while something failed or is stale."),
]
OnHub = Annotated[bool, typer.Option("--on-hub", help="Let the Hub do it, as a job that it begins by --schedule.")]
When = Annotated[str | None, typer.Option("--schedule", help="Of --on-hub, such as @daily or '0 9 * * 1'.")]


def _choices(text: str | None) -> str | None:
    """What the recipe's name or file stands for, so that it can travel to where the file is not."""
    return None if text is None else json.dumps(choices_given(text), default=str)


_RECIPE = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        callback=_choices,
        metavar="NAME|FILE|YAML",
        help="`best`, `mopeq` (the paper's), or choices at once, as in {bits: [2, 4], scope: layer}; those also "
        "given one by one count.",
        show_default="best",
    ),
]
_RECIPE_HELP = {
    "bits": "Widths that experts may get, of 2, 3, 4 and 8; one width is the uniform baseline.",
    "signal": "How sensitivity is measured: by weights (`hessian`, the paper's; `distortion`, `router`), or by running "
    "the model (`frequency`, `hessian*frequency`, `fisher`).",
    "inputs": "What such a signal runs the model on: its `own` inputs, or the `calibration` questions.",
    "initial": "Of `router`: an earlier checkpoint, a folder or owner/name@revision; only its routers are read.",
    "estimator": "Of the Hessian trace: `exact` or `hutchinson`.",
    "probes": "Random vectors of the hutchinson estimator.",
    "allocator": "How sensitivities become widths: `kmeans`, the paper's; `rank` or `knapsack`, which meet a --budget.",
    "budget": "What it may take: `3.0bpw` of the routed experts, `12GB`, `500MB` or `0.25x` of all files; a list of "
    "them, 2.5bpw,3.0bpw, gives each a branch.",
    "scope": "Who competes for bits: all experts of the `model`, or those of one `layer`.",
    "granularity": "What one width covers: an `expert`, a `projection`, or all experts of a `layer`. Engines with one "
    "width a layer (vLLM, llama.cpp, MLX) need `layer`; other maps need auto-round through transformers.",
    "quantizer": "`search` for the best scale of a group, `rtn`, round to nearest, or calibrated: `gptq`, `signround`.",
    "iterations": "How often `signround` adjusts each decoder layer.",
    "group_size": "Consecutive weights that share a scale: 32, 64, 128 or 256.",
    "symmetric": "Whether the grid is centred on zero.",
    "rest_bits": "Width of the text model's other linear layers: 2, 3, 4, 8 (as in `best`), or 16, to leave them; "
    "`auto` gives each its own, in one knapsack with the experts.",
    "shard_size": "Bytes at which a new output file is begun.",
    "seed": "Of everything random.",
}


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--recipe`, and one option for each choice of a Recipe that has a help text, with the Recipe's own
    defaults, in place of its `recipe`. The digest of the calibration data has none: a file is named instead.

    A command with a parameter `budgets` is given all of a list of budgets there, and the first of them in its recipe.
    """
    lists = "budgets" in signature(command).parameters
    options = [Parameter("recipe", Parameter.KEYWORD_ONLY, default=None, annotation=_RECIPE)]
    for choice in (field for field in fields(Recipe) if field.name in _RECIPE_HELP):
        flag = "--" + choice.name.replace("_", "-") + ("/--asymmetric" if choice.name == "symmetric" else "")
        kind = str if choice.name in ("bits", "rest_bits") else type(choice.default)
        option = typer.Option(flag, help=_RECIPE_HELP[choice.name], show_default=_shown(choice.default))
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        options.append(Parameter(choice.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    @wraps(command)
    def with_options(**values: Any) -> None:
        asked = {option.name: values.pop(option.name) for option in options}
        choices = json.loads(asked.pop("recipe") or "{}")
        choices |= {name: value for name, value in asked.items() if value is not None}
        budgets = budgets_of(choices.get("budget"))
        if len(budgets) > 1 and not lists:
            raise UsageError(f"{command.__name__} takes one --budget", "`publish` and `plan` take a list")
        if len(budgets) > 1:
            choices["budget"], values["budgets"] = budgets[0], budgets
        command(recipe=Recipe.from_dict(with_default(choices_of(choices))), **values)

    own = [
        parameter for parameter in signature(command).parameters.values() if parameter.name not in ("recipe", "budgets")
    ]
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own]
    with_options.__signature__ = Signature([*own, *options])  # type: ignore[attr-defined]
    return with_options


def words(text: str | None) -> list[str]:
    """What an option lists with commas."""
    return [word for word in (each.strip() for each in (text or "").split(",")) if word]


def given(context: typer.Context, left_out: set[str]) -> list[str]:
    """The options on the command line that is being run, as they would be written again, but for these."""
    words: list[str] = []
    for option in context.command.params:
        name, source = str(option.name), context.get_parameter_source(str(option.name))
        if name in left_out or source is None or source.name != "COMMANDLINE":
            continue
        value, flags = context.params[name], [*option.opts, *option.secondary_opts]
        words += [flags[0 if value else -1]] if isinstance(value, bool) else [flags[0], str(value)]
    return words


def _shown(default: Any) -> str | bool:
    if default == "":
        return False
    if isinstance(default, bool):
        return "symmetric" if default else "asymmetric"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
