"""A generator as a folder for collections of models: weights, the arguments of the network, a model card."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.check import fingerprint
from datasets.errors import UserError
from datasets.files import read_json, write_atomically
from gan.checkpoint import checkpoint_hash, load_file
from gan.generator_file import FILE_NAME, describe, write_generator
from gan.setup import generator_arguments
from gan.translate import Translator
from gan.viewers import GRID, Record, sample_file, shown_records

CONFIG, CARD, SAMPLES = "config.json", "README.md", "samples.png"


def write_hub(translator: Translator, folder: Path) -> None:
    """Fill a folder with weights, configuration, card and, where the run has samples, a picture of them.

    Raises UserError for files of the run that cannot be read, OSError.
    """
    write_generator(translator, folder / FILE_NAME)
    arguments = generator_arguments(translator.options, translator.input_nc, translator.output_nc)
    write_atomically(folder / CONFIG, (json.dumps(arguments, indent=1) + "\n").encode())
    run = translator.checkpoint.parent
    records = [record for record in shown_records(run) if record["step"] <= translator.step]
    grids = [record for record in records if record["kind"] == "samples" and GRID in record["pictures"]]
    has_samples = False
    if grids and (grid := sample_file(run, grids[-1], GRID)).is_file():
        shutil.copyfile(grid, folder / SAMPLES)
        has_samples = True
    write_atomically(folder / CARD, _card(translator, records, has_samples).encode())


def _card(translator: Translator, records: list[Record], has_samples: bool) -> str:
    """The model card: Markdown, with the head in YAML that collections of models read."""
    about = describe(translator)
    options: dict[str, Any] = json.loads(about["options"])
    kind = {"cycle_gan": "CycleGAN", "pix2pix": "Pix2Pix"}[options["model"]]
    source, target = translator.direction.split("to")
    scale = "It is not known by how much the training resized its pictures."
    if translator.median_size:
        across, down = translator.trained_scale
        scale = f"The training resized its pictures by {across:.3g} across and {down:.3g} down. That scale fits best."
    taught = (
        f"{translator.epoch} epochs, {translator.step} steps"
        if translator.step
        else "Epochs and steps are not known"
    )
    taught += "; an average of the weights" * translator.is_average
    shown = [
        f"| `{name}` | `{value}` |"
        for name, value in options.items()
        if name != "name" and value not in (None, "")
    ]
    picture = f"\n![samples of the training]({SAMPLES})\n" if has_samples else ""
    return f"""---
tags: [image-to-image, {options["model"].replace("_", "")}, {options["norm"]}]
pipeline_tag: image-to-image
---

# {options["name"]} {translator.direction}

The generator of a {kind} that translates pictures of domain {source} to domain {target}.
{picture}
## Use it

With the program that trained it, on pictures of any size:

```python
from gan.translate import Translator

translator = Translator.load("FOLDER")
```

As a network alone, with the program's folders `models` and `cuda_ops`. It takes (N, {translator.input_nc}, H, W) in
[-1, 1]. H and W are multiples of {about["size_multiple"]}, and at least {about["min_size"]}:

```python
import json
from safetensors.torch import load_file
from models.build import build_generator

network = build_generator(**json.load(open("{CONFIG}")))
network.load_state_dict(load_file("{FILE_NAME}"))
network.eval()
```

{scale}

## Training

{taught}. Data: {_data(translator)}.

<details><summary>All options</summary>

| option | value |
|---|---|
{chr(10).join(shown)}

</details>

## Results

{chr(10).join(_results(translator, records)) or "This checkpoint was not evaluated."}
"""


def _data(translator: Translator) -> str:
    """The fingerprint of the training data, as the plan of the training prints it."""
    file = translator.checkpoint
    listing = load_file(file).get("data") if file.is_file() else None  # a folder of another program has none
    return fingerprint(listing.split("\0")) if listing else "not known"


def _results(translator: Translator, records: list[Record]) -> Iterator[str]:
    """Lines of Markdown: what reports of this checkpoint say, each with its protocol; else the run's own figures."""
    found = False
    for path in sorted(translator.checkpoint.parent.glob("evaluation/**/report.json")):
        of_this = (
            checkpoint_hash(translator.checkpoint),
            translator.direction,
            "ema" * translator.is_average,
        )
        try:
            report = read_json(path)
            rows = [
                row
                for row in report["rows"]
                if (row.get("checkpoint_sha256"), row["direction"], row.get("weights", "")) == of_this
            ]
            protocol, meaning = report["protocol"]["id"], report["protocol"]["metrics"]
            lines = [
                f"| {name} | {float(value):.4g} | {row['n_fake']} / {row['n_real']} | {meaning.get(name, '')} |"
                for row in rows[:1]
                for name, value in row["values"].items()
            ]
        except (UserError, LookupError, TypeError, ValueError, AttributeError):
            continue  # of another version or program: nothing to quote
        if lines:
            found = True
            yield f"Protocol `{protocol}`. Quote a figure with it.\n"
            yield "| metric | value | outputs / reals | meaning |\n|---|---|---|---|"
            yield from lines
            yield ""
    metrics = [record for record in records if record["kind"] == "metrics"]
    if metrics and not found:
        yield f"On the validation pictures after step {metrics[-1]['step']}, to choose a checkpoint and not to quote:\n"
        yield "| metric | value |\n|---|---|"
        for name, value in metrics[-1]["metrics"].items():
            yield f"| {name} | {value:.4g} |" if value is not None else f"| {name} | - |"
