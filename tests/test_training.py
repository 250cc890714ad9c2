"""Test the paper's recipe on tiny nets, and once, slowly, that it learns ``shapes``."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import Int64, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from deconvoy.errors import ActivationInvalid, RequestError
from workers import training
from workers.training import (
    DEMO_EPOCHS,
    DEMO_IMAGES,
    EpochReport,
    Recipe,
    Training,
    accuracy,
    clip_filters_,
    decayed,
    draw_shapes,
    top_errors,
    train,
)
from workers.zfnet import SHAPES_MEAN, SHAPES_STD, zfnet_small

NO_IMAGES = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
NO_LABELS = torch.zeros(0, dtype=torch.int64)
SCALE = {"mean": SHAPES_MEAN, "std": SHAPES_STD}


def _tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * 15 * 15, 10),
    )


@pytest.fixture(scope="module")
def forty() -> tuple[UInt8[Tensor, "image channel row col"], Int64[Tensor, " image"]]:
    return draw_shapes(seed=0, size=40)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --- the recipe ----------------------------------------------------------------------------------


def test_clipping_scales_only_filters_above_the_radius() -> None:
    weight = torch.stack(
        [torch.full((2, 3, 3), 0.4), torch.full((2, 3, 3), -0.05), torch.zeros(2, 3, 3)]
    )
    clip_filters_(weight, max_rms=0.1)
    torch.testing.assert_close(weight[0], torch.full((2, 3, 3), 0.1))
    assert torch.equal(weight[1], torch.full((2, 3, 3), -0.05))
    assert torch.equal(weight[2], torch.zeros(2, 3, 3))


def test_a_clipped_filter_keeps_its_direction() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    before = weight.clone()
    clip_filters_(weight)
    torch.testing.assert_close(
        weight.square().mean(dim=(1, 2, 3)), torch.full((5,), 0.01, dtype=torch.float64)
    )
    cosine = torch.cosine_similarity(weight.flatten(1), before.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(5, dtype=torch.float64))


def test_training_clips_every_filter(forty: tuple[Tensor, Tensor]) -> None:
    model = _tiny()
    with torch.no_grad():
        model[0].weight.mul_(10)
    train(model, *forty, epochs=1, **SCALE)
    rms = model[0].weight.detach().square().mean(dim=(1, 2, 3)).sqrt()
    assert (rms <= 0.1 * (1 + 1e-5)).all()


def test_one_step_is_sgd_with_momentum_worked_by_hand() -> None:
    """A lone bias, two images, batch of one: velocity 0.9 v + g, weight minus rate times it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    labels = torch.zeros(2, dtype=torch.int64)
    grey = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    train(model, images, labels, epochs=1, batch_size=1, learning_rate=0.5, **grey)
    bias, velocity = torch.zeros(2), torch.zeros(2)
    for _ in range(2):
        velocity = 0.9 * velocity + bias.softmax(0) - torch.tensor([1.0, 0.0])
        bias = bias - 0.5 * velocity
    torch.testing.assert_close(model[1].bias.detach(), bias)


def test_the_rate_falls_in_a_straight_line_and_never_to_nothing() -> None:
    rates = [decayed(0.01, epoch, 4) for epoch in range(1, 5)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_each_epoch_runs_at_the_rate_it_reports(forty: tuple[Tensor, Tensor]) -> None:
    reports = train(_tiny(), *forty, epochs=2, learning_rate=0.004, **SCALE)
    assert [report.learning_rate for report in reports] == pytest.approx([0.004, 0.002])


# --- determinism ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_whatever_the_caller_does_between(
    forty: tuple[Tensor, Tensor],
) -> None:
    one, other = _tiny(), _tiny()
    first = train(one, *forty, epochs=3, seed=7, **SCALE)
    torch.manual_seed(99)
    second = train(other, *forty, epochs=3, seed=7, on_epoch=lambda _: torch.rand(5), **SCALE)
    assert first == second
    assert torch.equal(_weights(one), _weights(other))


def test_another_seed_gives_other_weights(forty: tuple[Tensor, Tensor]) -> None:
    one, other = _tiny(), _tiny()
    train(one, *forty, epochs=1, seed=7, **SCALE)
    train(other, *forty, epochs=1, seed=8, **SCALE)
    assert not torch.equal(_weights(one), _weights(other))


def test_global_random_numbers_go_on_as_if_nothing_had_happened(
    forty: tuple[Tensor, Tensor],
) -> None:
    model = _tiny()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    train(model, *forty, epochs=1, **SCALE)
    assert torch.equal(torch.rand(4), expected)


# --- reports, checkpoints, errors ----------------------------------------------------------------


def test_every_epoch_is_reported_with_the_model_in_evaluation_mode(
    forty: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model, seen = _tiny(), []

    def on_epoch(report: EpochReport) -> None:
        assert not model.training
        seen.append(report)

    with caplog.at_level(logging.INFO, logger="workers.training"):
        reports = train(model, *forty, epochs=2, on_epoch=on_epoch, **SCALE)
    assert seen == reports
    assert [report.epoch for report in reports] == [1, 2]
    assert all(report.loss > 0 and 0 <= report.accuracy <= 1 for report in reports)
    assert len(caplog.records) == 2


def test_a_checkpoint_holds_the_weights_of_its_epoch(
    forty: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    model = _tiny()
    kept: dict[int, Tensor] = {}
    reports = train(
        model,
        *forty,
        epochs=3,
        checkpoints=tmp_path / "new",
        checkpoint_epochs=[1, 3],
        on_epoch=lambda report: kept.update({report.epoch: model[0].weight.detach().clone()}),
        **SCALE,
    )
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["epoch-001.safetensors", "epoch-003.safetensors"]
    assert [report.checkpoint is not None for report in reports] == [True, False, True]
    for epoch in (1, 3):
        path = reports[epoch - 1].checkpoint
        assert path is not None
        assert torch.equal(load_file(path)["0.weight"], kept[epoch])


def test_all_epochs_are_kept_unless_some_are_named(
    forty: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    train(_tiny(), *forty, epochs=2, checkpoints=tmp_path, **SCALE)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(weights: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    path = training.save_checkpoint(_tiny(seed=1), tmp_path, epoch=1)
    before = path.read_bytes()
    monkeypatch.setattr(training, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        training.save_checkpoint(_tiny(seed=2), tmp_path, epoch=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_epochs": [1]}, "without a folder: pass checkpoints"),
        ({"checkpoint_epochs": [0, 1, 9], "checkpoints": Path("x")}, r"\[0, 9\].*keeps 1 to 2"),
        ({"epochs": 0}, "epochs=0: it must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0: it must be 1 or more"),
        ({"images": NO_IMAGES, "labels": NO_LABELS}, "0 images and 0 labels: there must be"),
    ],
)
def test_a_wrong_request_is_refused_before_any_step(
    change: dict, message: str, forty: tuple[Tensor, Tensor]
) -> None:
    model = _tiny()
    before = _weights(model)
    request = {"images": forty[0], "labels": forty[1], "epochs": 2, **SCALE, **change}
    with pytest.raises(RequestError, match=message):
        train(model, **request)
    assert torch.equal(_weights(model), before)


def test_a_diverged_training_says_so_and_how_to_go_on(forty: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ActivationInvalid, match=r"diverged in epoch \d.*Lower learning_rate"):
        train(_tiny(), *forty, epochs=9, learning_rate=1e38, **SCALE)


# --- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [nn.Module.train, nn.Module.eval])
def test_accuracy_counts_right_answers_without_dropout_and_puts_the_mode_back(
    mode: Callable[[nn.Module], nn.Module], forty: tuple[Tensor, Tensor]
) -> None:
    model = mode(nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(3 * 64 * 64, 10)))
    was_training = model.training
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([0, 0, 1.0, 0, 0, 0, 0, 0, 0, 0]))
    assert accuracy(model, *forty, **SCALE) == 0.1
    assert model.training == was_training


def test_drawn_shapes_are_the_rendered_ones(forty: tuple[Tensor, Tensor]) -> None:
    images, labels = forty
    shape = training.render(0, 13)
    assert torch.equal(images[13].permute(1, 2, 0), torch.from_numpy(shape.image))
    assert labels[13] == shape.label


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_zfnet_small_learns_shapes_and_its_first_filters_become_smooth() -> None:
    """At least 90 % on another seed; filters whose neighbours agree, not the noise of the start."""
    torch.manual_seed(0)
    model = zfnet_small()
    start = _smoothness(model.conv1.weight.detach())
    train(model, *draw_shapes(seed=0, size=DEMO_IMAGES), epochs=DEMO_EPOCHS, **SCALE)
    assert accuracy(model, *draw_shapes(seed=1, size=1000), **SCALE) >= 0.90
    assert abs(start) < 0.1
    assert _smoothness(model.conv1.weight.detach()) > 0.3


def _smoothness(weight: Tensor) -> float:
    """Correlation of horizontally and vertically neighbouring weights, mean over filters."""
    centred = weight - weight.mean(dim=(2, 3), keepdim=True)
    across = (centred[..., 1:] * centred[..., :-1]).mean()
    down = (centred[..., 1:, :] * centred[..., :-1, :]).mean()
    return float((across + down) / 2 / centred.square().mean())


def test_a_last_batch_of_one_joins_the_one_before_it_where_a_variance_is_taken() -> None:
    images, labels = draw_shapes(seed=1, size=9)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten()
    )
    seen = list[int]()
    training = Training(
        nn.Sequential(model, nn.Linear(4, 12)), images, labels, mean=SHAPES_MEAN, std=SHAPES_STD,
        recipe=Recipe(epochs=1, batch_size=4), seed=0, go_on=seen.append,
    )  # fmt: skip
    training.go_through()
    assert seen == [4, 5]
    for size in (1, 9):
        batch = Recipe(epochs=1, batch_size=1 if size == 9 else 4)
        with pytest.raises(RequestError, match="BatchNorm learns from 2 images or more at a time"):
            Training(
                model, images[:size], labels[:size], mean=SHAPES_MEAN, std=SHAPES_STD,
                recipe=batch, seed=0,
            )  # fmt: skip


def test_outputs_and_weights_that_are_not_finite_are_told() -> None:
    images, labels = draw_shapes(seed=1, size=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 12))
    with torch.no_grad():
        model[1].bias[0] = float("nan")
    with pytest.raises(ActivationInvalid, match="outputs that are not finite"):
        top_errors(model, images, labels, mean=SHAPES_MEAN, std=SHAPES_STD)
    training = Training(
        model, images, labels, mean=SHAPES_MEAN, std=SHAPES_STD, seed=0,
        recipe=Recipe(epochs=1, rate_field="analyses.probe.scratch.learning_rate"),
    )  # fmt: skip
    with pytest.raises(ActivationInvalid, match="epoch 1: .* Lower analyses.probe.scratch.learn"):
        training.go_through()
