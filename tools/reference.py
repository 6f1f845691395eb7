"""`python -m tools.reference SCRIPT FLAGS`: runs a training script of torchvision with converted models to choose from.

SCRIPT is train.py in references/classification, references/detection or references/segmentation of torchvision's
source. Its `--model` then also takes NAME_NORM, such as fasterrcnn_resnet50_fpn_v2_gn_nc.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from torch import nn
from torchvision.models import get_model_builder, list_models
from torchvision.models._api import register_model  # its only place

from datasets.errors import UserError, report
from models.convert import Conversion, convert

NAMES = ("resnet18", "resnet50", "fasterrcnn_resnet50_fpn_v2", "deeplabv3_resnet50")


def register_converted() -> list[str]:
    """Add NAME_NORM to torchvision's registry for each of NAMES and each norm of `convert`; returns these names."""
    converted = {f"{name}_{norm}": (name, norm) for name in NAMES for norm in get_args(Conversion)}
    for full in converted.keys() - set(list_models()):
        register_model(full)(_builder(*converted[full]))
    return list(converted)


def _builder(name: str, norm: Conversion) -> Callable[..., nn.Module]:
    def build(**arguments: Any) -> nn.Module:
        model: nn.Module = get_model_builder(name)(**arguments)
        convert(model, norm)
        return model

    return build


def main() -> None:
    script = Path(next(iter(sys.argv[1:]), ""))
    if not script.is_file():
        fix = "give train.py of a folder in torchvision's references/"
        report(UserError(script if sys.argv[1:] else "SCRIPT", "no such file", fix))
        sys.exit(2)
    register_converted()
    sys.argv.pop(0)
    sys.path.insert(0, str(script.resolve().parent))  # where Python looks for the files beside a script
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
