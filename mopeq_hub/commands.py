"""The commands: parse, call the pipeline, have it printed. No logic, and nothing heavy imported before it is needed."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mopeq_hub.errors import StoppedError, UsageError
from mopeq_hub.options import (
    Accuracy,
    Allocators,
    AsJson,
    BenchmarkLimit,
    BenchmarkNames,
    BenchmarkTasks,
    Bits,
    Budgets,
    CalibrationOption,
    CatalogArgument,
    Compare,
    DestArgument,
    DryRun,
    EngineOption,
    FidelityTokens,
    Flavor,
    FolderArgument,
    Granularity,
    GroupSize,
    Identity,
    IdentityProvider,
    Initial,
    Issue,
    Key,
    LookOnly,
    ModelArgument,
    OnHub,
    Only,
    Out,
    Private,
    QuestionsOption,
    RayAddress,
    RestBits,
    Sign,
    Signals,
    Space,
    Stream,
    Timeout,
    TrustRemoteCode,
    Truth,
    When,
    given,
    recipe_options,
    words,
)  # fmt: skip
from mopeq_hub.printing import (
    progress_for,
    show,
    show_json,
    show_outcome,
    show_outcomes,
    show_plans,
    show_publication,
    show_variants,
)
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import DEFAULT_TOKENS
from mopeq_hub.recipe import Recipe
from mopeq_hub.recipes import choices_of
from mopeq_hub.version import __version__

app = typer.Typer(
    help="Publish mixture-of-experts vision-language models with a bit width of its own for every expert.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
@recipe_options
def publish(
    context: typer.Context,
    model: ModelArgument,
    recipe: Recipe,
    to: Annotated[
        str | None,
        typer.Option(
            help="A Hub repo owner/name, or a folder.",
            show_default="{account}/{name}-MoPEQ or ./published/{name}-MoPEQ",
        ),
    ] = None,
    questions: QuestionsOption = None,
    calibration: CalibrationOption = None,
    fidelity_tokens: FidelityTokens = DEFAULT_TOKENS,
    compare: Compare = None,
    benchmarks: BenchmarkNames = None,
    benchmark_limit: BenchmarkLimit = 0,
    benchmark_tasks: BenchmarkTasks = None,
    space: Space = True,
    private: Private = False,
    dry_run: DryRun = False,
    stream: Stream = None,
    sign: Sign = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    flavor: Flavor = None,
    timeout: Timeout = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    budgets: Sequence[str] = (),
) -> None:
    """Quantize MODEL expert by expert, prove the result, and publish it with its card and its Space."""
    from mopeq_hub.benchmarks import benchmarks as benchmarks_named
    from mopeq_hub.engines.choice import check_options, engine_named

    check_options(engine, ray_address=ray_address, flavor=flavor, timeout=timeout)
    asked = benchmarks_named(words(benchmarks), benchmark_limit, benchmark_tasks)
    if engine == "jobs":
        if sign:
            raise UsageError("a job on the Hub has neither an OIDC identity nor your key", "sign with --engine local")
        from mopeq_hub import jobs

        options = given(context, {"model", "to", "engine", "flavor", "timeout", "as_json"})
        say, files = Quiet().say if as_json else print, (questions, calibration, benchmark_tasks)
        job = jobs.publish(model, to, options, say, files=files, flavor=flavor, timeout=timeout)
        show(asdict(job), as_json, lambda: f"job {job.id} is done")
        return
    from mopeq_hub import pipeline, variants

    with engine_named(engine, ray_address) as chosen:
        choices: dict[str, Any] = {
            "questions": questions,
            "calibration": calibration,
            "fidelity_tokens": fidelity_tokens,
            "compare": compare,
            "benchmarks": asked,
            "space": space,
            "private": private,
            "dry_run": dry_run,
            "stream": stream,
            "sign": sign,
            "engine": chosen,
            "trust_remote_code": trust_remote_code,
            "progress": progress_for(as_json),
        }
        if budgets:
            show_variants(variants.publish_variants(model, to, recipe, budgets, **choices), dry_run, as_json)
        else:
            show_publication(pipeline.publish(model, to, recipe, **choices), dry_run, as_json)


@app.command()
@recipe_options
def plan(
    model: ModelArgument,
    recipe: Recipe,
    profile: Annotated[Path | None, typer.Option(help="Sensitivities measured before.")] = None,
    save_profile: Annotated[Path | None, typer.Option(help="Where to keep the sensitivities that were used.")] = None,
    calibration: CalibrationOption = None,
    questions: QuestionsOption = None,
    fidelity_tokens: FidelityTokens = DEFAULT_TOKENS,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    budgets: Sequence[str] = (),
) -> None:
    """Show what would happen to MODEL: sizes per choice, the bit map, a heatmap, what the proof costs. Nothing is
    quantized."""
    from mopeq_hub import planning
    from mopeq_hub.sensitivity import Profile

    asked: dict[str, Any] = {
        "profile": Profile.read(profile) if profile else None,
        "progress": progress_for(as_json),
        "calibration": calibration,
        "questions": questions,
        "fidelity_tokens": fidelity_tokens,
        "trust_remote_code": trust_remote_code,
    }
    if budgets:
        from mopeq_hub import variants

        plans = variants.plan_variants(model, recipe, budgets, **asked)
    else:
        plans = {"": planning.plan(model, recipe, **asked)}
    planned = next(iter(plans.values()))
    if save_profile and planned.profile:
        planned.profile.write(save_profile)
    show_plans(model, plans, as_json)


@app.command()
def study(
    model: ModelArgument,
    signals: Signals = None,
    allocators: Allocators = None,
    budgets: Budgets = "2.5bpw,3.0bpw,3.5bpw",
    bits: Bits = "2,3,4",
    group_size: GroupSize = 64,
    granularity: Granularity = "expert",
    rest_bits: RestBits = 16,
    questions: QuestionsOption = None,
    calibration: CalibrationOption = None,
    initial: Initial = None,
    fidelity_tokens: FidelityTokens = DEFAULT_TOKENS,
    out: Out = None,
    truth: Truth = None,
    accuracy: Accuracy = False,
    benchmarks: BenchmarkNames = None,
    benchmark_limit: BenchmarkLimit = 0,
    benchmark_tasks: BenchmarkTasks = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure which signal and allocator serve MODEL best: a folder with study.json, study.md and plots."""
    from mopeq_hub.benchmarks import benchmarks as benchmarks_named
    from mopeq_hub.report import study as report
    from mopeq_hub.study import study as run

    choices = {"bits": bits, "group_size": group_size, "granularity": granularity, "rest_bits": rest_bits}
    document = run(
        model,
        signals=words(signals),
        allocators=words(allocators),
        budgets=words(budgets),
        recipe=Recipe.from_dict(choices_of(choices)),
        questions=questions,
        calibration=calibration,
        initial=initial,
        fidelity_tokens=fidelity_tokens,
        out=out,
        truth=truth,
        accuracy=accuracy,
        benchmarks=benchmarks_named(words(benchmarks), benchmark_limit, benchmark_tasks),
        trust_remote_code=trust_remote_code,
        progress=progress_for(as_json),
    )
    show(document, as_json, lambda: report.table(document))


@app.command()
@recipe_options
def quantize(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    recipe: Recipe,
    profile: Annotated[Path | None, typer.Option(help="Sensitivities measured before.")] = None,
    calibration: CalibrationOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Quantize MODEL into DIR."""
    from mopeq_hub import pipeline
    from mopeq_hub.engines.choice import check_options, engine_named
    from mopeq_hub.report import summary
    from mopeq_hub.sensitivity import Profile

    check_options(engine, ray_address=ray_address)
    known = Profile.read(profile) if profile else None
    with engine_named(engine, ray_address) as chosen:
        options: dict[str, Any] = {"engine": chosen, "trust_remote_code": trust_remote_code}
        repo = pipeline.quantize(model, folder, recipe, known, progress_for(as_json), calibration, **options)
    show(repo.manifest, as_json, lambda: summary.result_lines(repo.manifest, None, str(folder)))


@app.command()
def evaluate(
    folder: FolderArgument,
    questions: QuestionsOption = None,
    original: Annotated[str | None, typer.Option(help="The original, where it is no longer where it was.")] = None,
    fidelity_tokens: FidelityTokens = DEFAULT_TOKENS,
    compare: Compare = None,
    benchmarks: BenchmarkNames = None,
    benchmark_limit: BenchmarkLimit = 0,
    benchmark_tasks: BenchmarkTasks = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure the quantized model in DIR against its original; leaves fidelity.json."""
    from mopeq_hub import pipeline
    from mopeq_hub.benchmarks import benchmarks as benchmarks_named
    from mopeq_hub.manifest import read_manifest
    from mopeq_hub.report import summary

    fidelity = pipeline.evaluate(
        folder,
        questions,
        original=original,
        fidelity_tokens=fidelity_tokens,
        compare=compare,
        benchmarks=benchmarks_named(words(benchmarks), benchmark_limit, benchmark_tasks),
        trust_remote_code=trust_remote_code,
        progress=progress_for(as_json),
    )
    show(fidelity, as_json, lambda: summary.result_lines(read_manifest(folder), fidelity, str(folder)))


@app.command()
def card(
    folder: FolderArgument,
    to: Annotated[str | None, typer.Option(help="Where the card says that the model is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card and the plots of DIR."""
    from mopeq_hub import pipeline
    from mopeq_hub.hub import destination_for

    path = pipeline.card(folder, destination_for(to, to) if to else None)
    show({"card": str(path)}, as_json, lambda: f"wrote {path}")


@app.command()
def push(
    folder: FolderArgument,
    dest: DestArgument,
    space: Space = True,
    private: Private = False,
    dry_run: DryRun = False,
    sign: Sign = None,
    as_json: AsJson = False,
) -> None:
    """Publish DIR, which was quantized, evaluated and given a card, to DEST."""
    from mopeq_hub import pipeline

    publication = pipeline.push(
        folder, dest, space=space, private=private, dry_run=dry_run, sign=sign, progress=progress_for(as_json)
    )
    show_publication(publication, dry_run, as_json)


@app.command()
def space(
    dest: DestArgument,
    local: Annotated[bool, typer.Option("--local", help="Open it on this machine instead.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of --local.", show_default="a free one")] = None,
    private: Private = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Create or update the Space of the publication at DEST, or open it on this machine."""
    if port is not None and not local:
        raise UsageError("--port is for --local", "add --local, or leave --port out")
    from mopeq_hub import pipeline

    if local:
        with suppress(StoppedError):
            pipeline.run_space(dest, port, trust_remote_code=trust_remote_code)
        return
    commit = pipeline.publish_space(dest, private=private)
    show(
        {"space_commit": commit},
        as_json,
        lambda: f"the Space of {dest} " + ("was updated" if commit else "was up to date"),
    )


@app.command()
def families(as_json: AsJson = False) -> None:
    """The kinds of models that were proven: what config.json says, how their experts are stored, what loads them."""
    from mopeq_hub.families.proven import PROVEN, table
    from mopeq_hub.families.stated import REFUSED

    refused = [{"model_type": family.model_type, "why": family.refused} for family in REFUSED]
    show({"families": [kind.to_dict() for kind in PROVEN], "refused": refused}, as_json, table)


@app.command()
def check(
    dest: DestArgument,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Whether to load it, which takes the whole model's memory.")
    ] = True,
    key: Key = None,
    identity: Identity = None,
    identity_provider: IdentityProvider = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check the publication at DEST: every tensor against the bit map, hashes, metadata, whose it is, and that it
    loads."""
    from mopeq_hub.check import check as look
    from mopeq_hub.signing import signatory_for

    signatory = signatory_for(key, identity, identity_provider)
    options: dict[str, Any] = {"load": load, "signatory": signatory, "trust_remote_code": trust_remote_code}
    findings = look(dest, progress_for(as_json), **options)
    if as_json:
        show_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(
                f"{'failed' if finding.trouble else 'ok':<7} {finding.subject}"
                + (f": {finding.trouble}" if finding.trouble else "")
            )
    if any(finding.trouble for finding in findings):
        raise typer.Exit(1)


@app.command()
def republish(
    catalog: CatalogArgument,
    only: Only = None,
    dry_run: LookOnly = False,
    sign: Sign = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    flavor: Flavor = None,
    timeout: Timeout = None,
    issue: Issue = False,
    on_hub: OnHub = False,
    schedule: When = None,
    as_json: AsJson = False,
) -> None:
    """Publish again what is stale of CATALOG: its source or recipe has changed, or what is there is not whole."""
    from mopeq_hub import republishing as work

    if on_hub:
        made = work.schedule(catalog, only or (), schedule, show_outcome, flavor=flavor, timeout=timeout)
        show(asdict(made), as_json, lambda: f"scheduled {made.when}: {made.name} of {made.account}, {made.id}")
        return
    if schedule is not None:
        raise UsageError("--schedule is for --on-hub", "add --on-hub, or leave --schedule out")
    with work.publisher_named(
        engine,
        progress_for(as_json),
        dry_run=dry_run,
        sign=sign,
        ray_address=ray_address,
        flavor=flavor,
        timeout=timeout,
    ) as publisher:
        say = (lambda outcome: None) if as_json else show_outcome
        outcomes = work.republish(catalog, only or (), publisher, say, issue=issue)
    show_outcomes(work.name_of(catalog), work.document(outcomes), as_json)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)
