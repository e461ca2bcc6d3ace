"""Profiles, measured once for the same weights and signal and kept for the next run."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from mopeq_hub import workplace
from mopeq_hub.bitmap import competing
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.recipe import RUNNING, Recipe
from mopeq_hub.sensitivity import COSTS, SETTINGS, Profile, product
from mopeq_hub.sensitivity import profile_of as made_of
from mopeq_hub.sensitivity.by_running import measured_by_running
from mopeq_hub.sensitivity.given import NOTHING, Given
from mopeq_hub.sensitivity.run import measure


def profile_of(
    model: Model, recipe: Recipe, progress: Progress, engine: Engine = LOCAL, given: Given = NOTHING
) -> Profile:
    """The profile the recipe asks for, measured now or, for the same weights and signal, before."""
    cached = cache_of(model, recipe)
    if cached.is_file():
        return Profile.read(cached)
    if recipe.signal == product.NAME:
        traces, frequencies = (
            profile_of(model, replace(recipe, signal=signal), progress, engine, given)
            for signal in ("hessian", "frequency")
        )
        profile = product.product(traces, frequencies, SETTINGS[recipe.signal](recipe))
    elif recipe.signal in RUNNING:
        profile = run(model, recipe, given.calibration, progress)
    else:
        profile = measure(model, recipe, cached.with_suffix(".partial"), progress, engine, given)
    profile.write(cached)
    return profile


def run(model: Model, recipe: Recipe, calibration: Path | None, progress: Progress) -> Profile:
    """The profile by a signal that runs the model, and on how much it was run."""
    measured, groups = measured_by_running(model, recipe, calibration, progress)
    profile = made_of(model.layout, measured, recipe, model.source.commit)
    return replace(profile, signal={**profile.signal, "groups": groups})


def checked(profile: Profile, model: Model, recipe: Recipe) -> Profile:
    """The profile, if it is of these weights, by the recipe's signal with its settings, and of all that it measures."""
    if profile.source_commit != model.source.commit:
        raise MopeqError(
            f"the profile is of {profile.source_commit[:12] or 'unknown weights'}, {model.source.name} is at "
            f"{model.source.commit[:12]}",
            "measure again, without --profile",
        )
    same = {**profile.signal, **SETTINGS[recipe.signal](recipe)} == profile.signal
    if not same or set(profile.experts) != set(model.layout.experts):
        raise MopeqError("the profile is by another signal, or of other experts", "measure again, without --profile")
    if any(matrix.name not in profile.rest for matrix in competing(model.layout, recipe)):
        raise MopeqError(
            "the profile holds nothing of layers outside the experts, which --rest-bits auto needs",
            "measure again, without --profile",
        )
    if recipe.signal in COSTS and not set(recipe.packed_widths) <= set(profile.widths):
        missing = ", ".join(str(bits) for bits in recipe.packed_widths if bits not in profile.widths)
        raise MopeqError(f"the profile holds no cost of {missing} bits", "measure again, without --profile")
    return profile


def is_kept(model: Model, recipe: Recipe) -> bool:
    """Whether the profile was measured before. Of headers without weights, whose commit nobody needs to find, none
    was."""
    return not model.absent and cache_of(model, recipe).is_file()


def cache_of(model: Model, recipe: Recipe) -> Path:
    """Where the profile of this model by the recipe's signal is kept, or will be."""
    settings = SETTINGS[recipe.signal](recipe)
    if recipe.signal in COSTS:
        settings = {**settings, "widths": recipe.packed_widths}
    if recipe.rest_bits == "auto":
        settings = {**settings, "rest": True}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return workplace.cache("profiles") / f"{model.source.commit[:16]}-{recipe.signal}-{digest[:12]}.json"
