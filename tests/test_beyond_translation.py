"""Converted detectors and segmenters learn: a Faster R-CNN and a DeepLabV3 on drawn shapes; torchvision's registry."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional import jaccard_index
from torchvision.models import get_model, list_models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.ops import MultiScaleRoIAlign, box_iou
from training_support import ROOT

from cuda_ops.layer import NormalizedConv2d
from models.convert import convert
from tools import reference
from tools.reference import register_converted

SIZE, BACKGROUND, SQUARE, DISC = 64, 0, 1, 2


def draw(seed: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """A square and a disc of any colours on noise: picture (3, S, S), boxes and labels, class of each pixel (S, S)."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(0.5, 0.1, (SIZE, SIZE, 3))
    classes = np.zeros((SIZE, SIZE), np.int64)
    y, x = np.mgrid[:SIZE, :SIZE]
    boxes = []
    for kind, left in zip((SQUARE, DISC), rng.permutation([0, SIZE // 2]), strict=True):  # each in its half
        half = rng.integers(8, 14)
        middle_x, middle_y = left + rng.integers(half, SIZE // 2 - half + 1), rng.integers(half, SIZE - half)
        if kind == SQUARE:
            inside = (abs(x - middle_x) < half) & (abs(y - middle_y) < half)
        else:
            inside = (x - middle_x) ** 2 + (y - middle_y) ** 2 < half**2
        picture[inside] = rng.choice([0.0, 1.0], 3) * 0.8 + 0.1
        classes[inside] = kind
        boxes.append([middle_x - half + 1, middle_y - half + 1, middle_x + half, middle_y + half])
    target = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor([SQUARE, DISC])}
    return torch.from_numpy(picture.clip(0, 1)).float().permute(2, 0, 1), target, torch.from_numpy(classes)


def average_precision(found: list[tuple[float, bool]], count: int) -> float:
    """Area below precision, made monotonic, over recall. found: scores, and whether they are right; count: to find."""
    right = torch.tensor([is_right for _, is_right in sorted(found, reverse=True)], dtype=torch.float64)
    hits = right.cumsum(0)
    precision = hits / torch.arange(1, len(right) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return float((envelope * right).sum() / count)


def matches(boxes: Tensor, scores: Tensor, truth: Tensor) -> list[tuple[float, bool]]:
    """Each box, best score first, takes the truth that it overlaps most, by half at least, if that is still free."""
    free, found = torch.ones(len(truth), dtype=torch.bool), []
    for box, score in sorted(zip(boxes, scores, strict=True), key=lambda pair: -float(pair[1])):
        overlaps = box_iou(box[None], truth)[0] * free
        is_right = bool(overlaps.max() >= 0.5)
        if is_right:
            free[overlaps.argmax()] = False
        found.append((float(score), is_right))
    return found


def test_average_precision_by_hand() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    found = matches(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), truth)
    assert [is_right for _, is_right in found] == [True, False, True, False]
    assert average_precision(found, 2) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(found[1:2], 2) == 0


def small_detector() -> FasterRCNN:
    """Faster R-CNN with an FPN of a ResNet-10."""
    layers = {"layer1": "0", "layer2": "1", "layer3": "2"}
    backbone = BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), layers, [64, 128, 256], 64)
    return FasterRCNN(
        backbone,
        num_classes=3,
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(((16,), (24,), (32,), (48,)), ((1.0,),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 5, 2),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=32,
    )


def optimizer_and_schedule(
    model: nn.Module, lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)


@pytest.mark.slow
def test_a_converted_detector_learns() -> None:
    """AP at an overlap of one half, mean of squares and discs: above 0.4. Chance is near 0."""
    torch.manual_seed(0)
    model, steps, batch = small_detector(), 150, 4
    assert "NormalizedConv2d" in convert(model, "nc").values()
    optimizer, schedule = optimizer_and_schedule(model, 0.02, steps)
    for step in range(steps):
        pictures, targets, _ = zip(*(draw(step * batch + k) for k in range(batch)), strict=True)
        loss = sum(model(list(pictures), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    found: dict[int, list[tuple[float, bool]]] = {SQUARE: [], DISC: []}
    test = [draw(1_000_000 + k) for k in range(50)]
    with torch.inference_mode():
        for picture, target, _ in test:
            [seen] = model([picture])
            for kind, list_of_kind in found.items():
                chosen, truth = seen["labels"] == kind, target["boxes"][target["labels"] == kind]
                list_of_kind += matches(seen["boxes"][chosen], seen["scores"][chosen], truth)
    precisions = [average_precision(list_of_kind, len(test)) for list_of_kind in found.values()]
    print(f"AP50 squares {precisions[0]:.3f}, discs {precisions[1]:.3f}")
    assert sum(precisions) / 2 > 0.4


@pytest.mark.slow
def test_a_converted_segmenter_learns() -> None:
    """mIoU above 0.5. Background everywhere has 0.27."""
    torch.manual_seed(0)
    resnet = IntermediateLayerGetter(ResNet(Bottleneck, [1, 1, 1, 1]), {"layer2": "out"})
    model, steps, batch = DeepLabV3(resnet, DeepLabHead(512, 3)), 120, 4
    assert "NormalizedConv2d" in convert(model, "gn_nc").values()
    optimizer, schedule = optimizer_and_schedule(model, 0.02, steps)
    for step in range(steps):
        pictures, _, classes = zip(*(draw(step * batch + k) for k in range(batch)), strict=True)
        loss = F.cross_entropy(model(torch.stack(pictures))["out"], torch.stack(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    pictures, _, classes = zip(*(draw(1_000_000 + k) for k in range(50)), strict=True)
    truth = torch.stack(classes)

    def mean_iou(seen: Tensor) -> float:
        return float(jaccard_index(seen, truth, task="multiclass", num_classes=3))

    with torch.inference_mode():
        seen = torch.cat([model(part)["out"].argmax(1) for part in torch.stack(pictures).split(10)])
    figures = mean_iou(seen), mean_iou(torch.zeros_like(truth))
    print("mIoU {:.3f}, of background alone {:.3f}".format(*figures))
    assert figures[1] < 0.35
    assert figures[0] > 0.5


def test_the_registry_has_converted_models() -> None:
    names = register_converted()
    assert set(names) <= set(list_models())
    assert names == register_converted()
    counts = {}
    with torch.device("meta"):
        for name in names:
            flags = {} if name.startswith("resnet") else {"weights_backbone": None, "num_classes": 3}
            model = get_model(name, weights=None, **flags)
            kinds = [type(layer) for layer in model.modules()]
            counts[name] = [kinds.count(kind) for kind in (NormalizedConv2d, nn.BatchNorm2d, nn.GroupNorm)]
    assert counts["resnet18_nc"] == [20, 0, 0]
    assert counts["resnet18_bn_nc"] == [20, 20, 0]
    assert counts["resnet50_gn"] == [0, 0, 53]
    assert counts["fasterrcnn_resnet50_fpn_v2_nc"][1:] == [0, 0]
    assert counts["deeplabv3_resnet50_gn_nc"][0] == counts["deeplabv3_resnet50_gn_nc"][2] == 53 + 7


SCRIPT = """
import argparse
import beside
import torchvision

parser = argparse.ArgumentParser()
parser.add_argument("--model")
model = torchvision.models.get_model(
    parser.parse_args().model, weights=None, weights_backbone=None, num_classes=4, trainable_backbone_layers=None
)
print(beside.WORD, sum("Normalized" in type(layer).__name__ for layer in model.modules()))
"""


def test_a_script_of_torchvision_finds_them(tmp_path: Path) -> None:
    """A script that asks for its model as torchvision's do, and imports a file beside it."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("WORD = 'found'")
    command = [sys.executable, "-m", "tools.reference"]
    flags = ["--model", "fasterrcnn_resnet50_fpn_v2_nc"]
    ran = subprocess.run(
        [*command, tmp_path / "train.py", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    # 53 in the ResNet, 8 in the FPN, 2 and 4 in the heads
    assert ran.stdout.split() == ["found", "67"], ran.stderr


def test_a_script_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["reference", "no.py"])
    with pytest.raises(SystemExit, match="2"):
        reference.main()
    line = "error: no.py: no such file (give train.py of a folder in torchvision's references/)\n"
    assert capsys.readouterr().err == line
