"""Fine-tune torchvision's resnet18 on ten classes of drawings; keep it before and after.

Without --weights it starts from random ones, since that needs no network: then "before" is an
untrained network, and this is training from scratch.

Writes class folders of images, two checkpoints as training scripts usually save them, and a job
spec for each: what docs/walk.md goes on from.  Put your own folders in their place.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from workers.shapes import CLASSES, render

SIDE = 64
WEIGHTS = "to start from: torchvision's, as in IMAGENET1K_V1 (needs a network); default: random"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--weights", help=WEIGHTS)
    given = parser.parse_args()
    torch.manual_seed(0)

    draw(given.folder / "train", given.images, seed=1)
    draw(given.folder / "validation", max(len(CLASSES), given.images // 4), seed=2)
    model = torchvision.models.resnet18(weights=given.weights)
    model.fc = nn.Linear(model.fc.in_features, len(CLASSES))
    save(model, given.folder / "before.pt", epoch=0)
    for epoch in range(1, given.epochs + 1):
        loss = train(model, given.folder / "train")
        print(f"epoch {epoch} of {given.epochs}: loss {loss:.3f}", flush=True)
    save(model, given.folder / "after.pt", given.epochs)
    for name in ("before", "after"):
        write_spec(given.folder, name)


def draw(folder: Path, count: int, seed: int) -> None:
    """Class folders of drawings."""
    for number in range(count):
        place = folder / CLASSES[number % len(CLASSES)] / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(render(seed, number).image)).save(place)


def train(model: nn.Module, folder: Path) -> float:
    """One epoch; the mean loss."""
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    loader = DataLoader(ImageFolder(folder, v2.Compose(steps)), batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def save(model: nn.Module, place: Path, epoch: int) -> None:
    torch.save({"state_dict": model.state_dict(), "epoch": epoch}, place)


def write_spec(folder: Path, name: str) -> None:
    spec = {
        "name": f"resnet18 {name} fine-tuning",
        "model": {
            "name": "torchvision/resnet18",
            "weights": str(folder / f"{name}.pt"),
            "arguments": {"num_classes": len(CLASSES)},
        },
        "data": {
            "uri": str(folder / "validation"),
            "transform": {"resize": SIDE, "crop": SIDE, "mean": list(MEAN), "std": list(STD)},
        },
        "layers": ["*.1.relu_1", "logits"],
        "analyses": [
            {"kind": "top", "k": 9},
            {"kind": "projection", "units": {"ids": list(range(12))}},
        ],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
