"""Whether a kind of model that nobody proved would load, found out before its weights are fetched: auto-round's loader
prepares for what would be published, from headers alone."""

import json

from mopeq_hub import workplace
from mopeq_hub.bitmap import BitMap, quantization_config, width_of
from mopeq_hub.errors import MopeqError
from mopeq_hub.families.proven import is_proven
from mopeq_hub.fidelity.measure import LOADING_TROUBLES
from mopeq_hub.fidelity.runner import Job, run
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.shards import write_index, write_stand_in
from mopeq_hub.quantization.stream import output_shards, plan_units
from mopeq_hub.recipe import Recipe
from mopeq_hub.remote_code import bring


def rehearse(model: Model, recipe: Recipe, progress: Progress) -> None:
    """Say of a kind of model that is not among the proven that it is not, and see that it would load.

    Raises MopeqError where the loader would miss a weight, leave one over, or take one for another.
    """
    if is_proven(model.config):
        return
    made = ", and is made by code that comes with it, which runs here" if model.code else ""
    kind = f"{model.kind} is none of the kinds that were proven (mopeq-hub families){made}"
    progress.say(f"{kind}: trying what would load it")
    recipe = recipe.uniform(recipe.bits[0])
    bitmap = BitMap.uniform(model.layout, recipe.bits[0])
    shards = output_shards(plan_units(model.checkpoint, model.layout, bitmap, recipe))
    config = {**model.config, "quantization_config": quantization_config(model.layout, bitmap, recipe)}
    with workplace.scratch() as folder:
        for shard in shards:
            write_stand_in(folder, shard)
        write_index(folder, shards)
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        if model.code:
            bring(model.source, model.code, folder)
        found = run(Job("prepare", folder, model.layout.auto_class, trusted=model.trusted), 0, progress)["loading"]
    hint = "this kind of model is not supported yet; report its name"
    for kind, words in LOADING_TROUBLES.items():
        if names := found[kind]:
            raise MopeqError(f"auto-round's loader would not load {model.kind} quantized: {names[0]} is {words}", hint)
    for matrix in model.layout.matrices:
        bits = width_of(matrix, bitmap, recipe)
        if found["widths"].get(matrix.name, 16) != bits:
            raise MopeqError(f"auto-round's loader would not take {matrix.name} of {model.kind} for {bits} bits", hint)
