"""fidelity.json as a table: how close the quantized model is to the original, as measured when it was published."""

from typing import Any


def table(fidelity: dict[str, Any], experts_bpw: float) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: one measure a row; in the columns this publication and the bit maps it was compared with."""
    accuracy = fidelity["accuracy"]
    published = {
        "experts_bpw": experts_bpw,
        "kl": fidelity["kl"],
        "top1_agreement": fidelity["top1_agreement"],
        "perplexity_ratio": fidelity["perplexity"]["ratio"],
        "accuracy": accuracy and accuracy["published"],
    }
    models = [published, *fidelity["comparisons"]]
    rows = [
        ["Bits per expert weight", *(f"{model['experts_bpw']:.2f}" for model in models)],
        ["KL divergence, mean", *(f"{model['kl']['mean']:.5f}" for model in models)],
        ["KL divergence, 99th percentile", *(f"{model['kl']['p99']:.5f}" for model in models)],
        ["Same most likely token", *(f"{model['top1_agreement']:.1%}" for model in models)],
        ["Perplexity / original's", *(f"{model['perplexity_ratio']:.4f}" for model in models)],
    ]
    if accuracy:
        right = ["–" if model["accuracy"] is None else f"{model['accuracy']:.1%}" for model in models]
        rows.append([f"Exact answers (original {accuracy['original']:.1%})", *right])
    return ["Measure", "This publication", *(model["name"] for model in fidelity["comparisons"])], rows


def inputs(fidelity: dict[str, Any]) -> str:
    """On what it was measured."""
    given = fidelity["inputs"]
    return (
        f"Quantized against original on the same {given['questions']} questions "
        f"({given['with_picture']} with a picture), {given['tokens']} answer tokens, "
        "all layers. KL divergence is in nats per token: "
        "0 means that both models expect exactly the same words."
    )
