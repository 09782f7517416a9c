"""The model card: `README.md` of an exported model, in the layout of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_METRICS = ("user_weighted_auc", "auc", "log_loss")


def model_card(
    name: str, manifest: Mapping[str, Any], request: Mapping[str, Any], license: str
) -> str:
    """Describes a model: its data, metrics, inputs and versions.

    Args:
      name: of the model.
      manifest: of the artifact.
      request: an example.
      license: of the data.
    """
    return "\n".join(_lines(name, manifest, request, license)) + "\n"


def _lines(
    name: str, manifest: Mapping[str, Any], request: Mapping[str, Any], license: str
) -> Iterator[str]:
    config, origin = manifest["config"], manifest["origin"]
    yield from ("---", "library_name: din_jax", "pipeline_tag: tabular-classification")
    yield from ("tags:", "- click-through-rate", f"- {config['model']['name']}")
    if license:
        yield f"license: {license}"
    yield from ("---", "", f"# {name}", "")
    yield (
        f"Click-through rates by `{config['model']['name']}` (preset "
        f"`{config['model']['preset']}`), trained by din_jax for {manifest['step']:,} steps."
    )
    yield from ("", "## Data", "")
    preparation = origin.get("preparation", "unknown")
    yield f"Prepared by `{preparation}`; license: {license or 'not given'}."
    samples = origin.get("samples")
    if isinstance(samples, Mapping):
        yield "Samples: " + ", ".join(f"{split} {n:,}" for split, n in samples.items()) + "."
    yield from ("", "## Metrics on test", "")
    metrics = {n: manifest["metrics"][n] for n in _METRICS if manifest["metrics"].get(n)}
    if metrics:
        yield from ("| metric | value |", "| --- | --- |")
        yield from (f"| {metric} | {value:.4f} |" for metric, value in metrics.items())
    else:
        yield "Training has not scored a test split."
    yield from ("", "## Inputs", "", "| field | of | kind |", "| --- | --- | --- |")
    schema = manifest["schema"]
    for field in schema["fields"]:
        kind = "list of ids" if field["multi_hot"] else "id"
        yield f"| {field['name']} | {field['group']} | {kind} |"
    for number in schema.get("numbers", ()):
        yield f"| {number['name']} | {number['group']} | number |"
    for sequence in schema["sequences"]:
        names = [f["name"] for f in (*sequence["fields"], *sequence.get("numbers", ()))]
        yield f"| {sequence['name']} | behaviors | {', '.join(names)} |"
    yield from ("", f"At most {manifest['max_history']:,} behaviours of a history are read.", "")
    yield from ("```python", "from din_jax import Scorer", "", "scorer = Scorer('.')")
    yield from (f"request = {json.dumps(_short(request))}", "scorer.score(**request)", "```")
    versions = ", ".join(f"{n} {v}" for n, v in manifest["versions"].items())
    yield from (
        "",
        "## Versions",
        "",
        f"{versions}. Platforms: {', '.join(manifest['platforms'])}.",
    )


def _short(request: Any) -> Any:
    """The request with the last two of each list."""
    if isinstance(request, Mapping):
        return {name: _short(value) for name, value in request.items()}
    return request[-2:] if isinstance(request, list) else request
