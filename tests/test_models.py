"""Test how a model is found, gets its weights, and travels; and the sentence where it cannot."""

import argparse
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from deconvoy.errors import ModelUnsupported, RequestError
from deconvoy.spec import ModelSpec, Transform
from workers.models import IMAGENET, PackedModel, pack
from workers.shapes import CLASSES
from workers.weights import read_weights
from workers.zfnet import SHAPES_MEAN, zfnet_small


def packed(name: str = "deconvoy/zfnet_small", seed: int = 0, **fields: Any) -> PackedModel:
    return pack(ModelSpec(name=name, **fields), seed)


def refusal(name: str = "deconvoy/zfnet_small", **fields: Any) -> str:
    with pytest.raises(RequestError) as caught:
        packed(name, **fields)
    return str(caught.value)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A file with factories of all kinds."""
    file = tmp_path / "tiny.py"
    file.write_text(
        textwrap.dedent(
            """
            from collections import OrderedDict
            from dataclasses import dataclass
            from torch import nn

            @dataclass
            class Width:
                units: int

            def net(units=2, name="conv"):
                layers = OrderedDict({name: nn.Conv2d(3, Width(units).units, 3), "relu": nn.ReLU()})
                return nn.Sequential(layers)

            def declaring(**fields):
                model = net()
                model.transform = {"resize": 20, "crop": 16, **fields}
                model.classes = ["yes", "no"]
                return model

            def failing(units):
                raise KeyError("no such size")

            def returning_nothing():
                net()

            CONSTANT = 3
            """
        )
    )
    return file


def tensors_of(file: Path, shift: float = 0.0) -> dict[str, Tensor]:
    return {key: t + shift for key, t in packed(f"{file}:net").build().state_dict().items()}


# --- names ---------------------------------------------------------------------------------------


def test_our_own_torchvisions_and_installed_models_are_found_by_name() -> None:
    assert isinstance(packed("deconvoy/zfnet_small").build(), type(zfnet_small()))
    squeezenet = packed("torchvision/squeezenet1_1", arguments={"num_classes": 3}).build()
    assert isinstance(squeezenet, torchvision.models.SqueezeNet)
    assert isinstance(packed("python/workers.zfnet:zfnet_small").build(), type(zfnet_small()))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision/resnet81", "did you mean torchvision/resnet18 or"),
        ("resnet18", "did you mean torchvision/resnet18"),
        ("deconvoy/alexnet", "our own are zfnet, zfnet_small"),
        ("python/no_such_module:net", "'no_such_module' cannot be imported"),
        ("python/workers.zfnet:nothing", "no callable 'nothing'"),
        ("nowhere/net.py:net", "'nowhere/net.py' cannot be read (No such file or directory)"),
        ("vit", "of no known form"),
    ],
)
def test_an_unknown_name_is_told_with_what_there_is(name: str, said: str) -> None:
    message = refusal(name)
    assert repr(name) in message
    assert said in message


def test_a_file_lists_its_factories_where_the_name_fits_none(tiny: Path) -> None:
    message = refusal(f"{tiny}:nett")
    assert "'nett'" in message
    for factory in ("net", "declaring", "failing"):
        assert factory in message
    assert "no callable 'CONSTANT'" in refusal(f"{tiny}:CONSTANT")


def test_a_file_that_does_not_run_is_told_with_its_own_error(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module_at_all\n")
    assert "ModuleNotFoundError: No module named 'no_such" in refusal(f"{file}:net")
    file.write_text("def net(:\n")
    assert "SyntaxError" in refusal(f"{file}:net")


def test_a_factory_that_raises_is_told_with_its_error_and_the_arguments(tiny: Path) -> None:
    message = refusal(f"{tiny}:failing", arguments={"units": 7})
    assert "KeyError: 'no such size'" in message
    assert "{'units': 7}" in message
    assert "TypeError" in refusal(f"{tiny}:net", arguments={"colour": "red"})


def test_a_factory_must_return_a_module(tiny: Path) -> None:
    with pytest.raises(ModelUnsupported, match=r"returned NoneType.*torch\.nn\.Module"):
        packed(f"{tiny}:returning_nothing")


# --- random weights and packing ------------------------------------------------------------------


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = packed(seed=5)
    torch.manual_seed(2)
    assert packed(seed=5).sha256 == one.sha256
    assert packed(seed=6).sha256 != one.sha256


def test_packing_leaves_the_generator_where_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    packed()
    assert torch.equal(torch.rand(3), expected)


def test_a_built_model_is_the_one_that_was_packed(tiny: Path) -> None:
    model = packed(f"{tiny}:net", arguments={"units": 5})
    one, other = model.build(), pickle.loads(pickle.dumps(model)).build()
    assert not one.training
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(one(images), other(images))
    assert one(images).shape[1] == 5


def test_a_model_of_a_file_is_built_where_the_file_is_not(tiny: Path, tmp_path: Path) -> None:
    place = tmp_path / "model.pickle"
    place.write_bytes(pickle.dumps(packed(f"{tiny}:net")))
    tiny.unlink()
    code = f"import pickle; print(pickle.load(open({str(place)!r}, 'rb')).build())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Conv2d(3, 2" in answer.stdout, answer.stderr


def test_the_fingerprint_covers_weights_and_code(tiny: Path) -> None:
    before = packed(f"{tiny}:net").sha256
    assert packed(f"{tiny}:net").sha256 == before
    assert packed(f"{tiny}:net", seed=1).sha256 != before
    tiny.write_text(tiny.read_text() + "\n# changed\n")
    assert packed(f"{tiny}:net").sha256 != before


# --- weights -------------------------------------------------------------------------------------

WRAPS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {}}},
    "module.": lambda tensors: {f"module.{key}": t for key, t in tensors.items()},
    "model.module.": lambda tensors: {
        "state_dict": {f"model.{key}": t for key, t in tensors.items()}
    },
    "model.state_dict": lambda tensors: {"model": {"state_dict": tensors}, "epoch": 3},
    "nested beside nothing": lambda tensors: {"model": None, "ema": tensors, "epoch": 3},
    "with whole numbers beside": lambda tensors: {**tensors, "epoch": 3, "best": 0.5},
    "lightning": lambda tensors: {
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
        "state_dict": {
            **{f"model.{key}": t for key, t in tensors.items()},
            "criterion.weight": torch.ones(2),
            "val_metric.total": torch.tensor(7),
        },
    },
    "averaged": lambda tensors: {
        "n_averaged": torch.tensor(5),
        **{f"module.{key}": t for key, t in tensors.items()},
    },
    "a name of its own": lambda tensors: {f"student.net.{k}": t for k, t in tensors.items()},
    "with a twin": lambda tensors: {
        **{f"model.{key}": t for key, t in tensors.items()},
        **{f"model_ema.{key}": t + 1 for key, t in tensors.items()},
    },
    "bfloat16": lambda tensors: {key: t.bfloat16() for key, t in tensors.items()},
    "float16": lambda tensors: {key: t.half() for key, t in tensors.items()},
    "float64": lambda tensors: {key: t.double() for key, t in tensors.items()},
}


@pytest.mark.parametrize("wrap", list(WRAPS))
def test_weights_are_found_however_they_were_saved(tiny: Path, tmp_path: Path, wrap: str) -> None:
    tensors = {key: t.bfloat16().float() for key, t in tensors_of(tiny, shift=1).items()}
    torch.save(WRAPS[wrap](tensors), tmp_path / "weights.pt")
    model = packed(f"{tiny}:net", weights=str(tmp_path / "weights.pt")).build()
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_are_widened_to_float32(tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: t.to(dtype) for key, t in tensors_of(tiny).items()}
    safetensors.torch.save_file(tensors, tmp_path / "weights.safetensors")
    model = packed(f"{tiny}:net", weights=str(tmp_path / "weights.safetensors")).build()
    for key, value in model.state_dict().items():
        assert torch.equal(value, tensors[key].float())


def test_whole_numbers_among_the_weights_stay_whole(tmp_path: Path) -> None:
    torch.save({"steps": torch.tensor(7), "w": torch.ones(1).half()}, tmp_path / "w.pt")
    read = read_weights(str(tmp_path / "w.pt"))
    assert read["steps"].dtype == torch.int64
    assert read["w"].dtype == torch.float32


def test_a_weights_key_says_which_tensors(tiny: Path, tmp_path: Path) -> None:
    one, other = tensors_of(tiny, 1), tensors_of(tiny, 2)
    torch.save({"state_dict": one, "teacher": other}, tmp_path / "w.pt")
    weights = str(tmp_path / "w.pt")
    chosen = packed(f"{tiny}:net", weights=weights, weights_key="teacher").build()
    assert torch.equal(chosen.state_dict()["conv.bias"], other["conv.bias"])
    message = refusal(f"{tiny}:net", weights=weights, weights_key="pupil")
    assert "'pupil'" in message
    assert "state_dict, teacher" in message


def test_weights_that_do_not_fit_are_told_tensor_by_tensor(tiny: Path, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    tensors["fc.weight"] = tensors.pop("conv.weight")
    torch.save(tensors, tmp_path / "w.pt")
    message = refusal(f"{tiny}:net", weights=str(tmp_path / "w.pt"))
    assert "missing: conv.weight (1)" in message
    assert "not in the model: fc.weight (1)" in message
    assert "of another shape" not in message
    message = refusal(
        f"{tiny}:net", weights=str(tmp_path / "w.pt"), arguments={"units": 9, "name": "other"}
    )
    assert "missing: other.bias, other.weight (2)" in message


def test_weights_of_another_shape_are_told_with_both(tiny: Path, tmp_path: Path) -> None:
    torch.save(tensors_of(tiny), tmp_path / "w.pt")
    message = refusal(f"{tiny}:net", weights=str(tmp_path / "w.pt"), arguments={"units": 4})
    assert "conv.bias is (2,), the model's (4,)" in message
    assert "num_classes" in message


def test_two_models_in_one_file_that_fit_alike_are_told(tiny: Path, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    both = {f"{who}.{key}": t for key, t in tensors.items() for who in ("teacher", "student")}
    torch.save(both, tmp_path / "w.pt")
    message = refusal(f"{tiny}:net", weights=str(tmp_path / "w.pt"))
    assert "several models that fit, under student., teacher." in message


def test_what_is_left_out_is_said(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.weights")
    torch.save(WRAPS["lightning"](tensors_of(tiny)), tmp_path / "w.pt")
    packed(f"{tiny}:net", weights=str(tmp_path / "w.pt"))
    assert "taking the tensors under 'state_dict'" in caplog.text
    assert "stripping the prefix 'model.'" in caplog.text
    assert "not of the model: criterion.weight, val_metric.total (2)" in caplog.text


def test_tensors_too_many_under_the_models_own_place_are_refused(
    tiny: Path, tmp_path: Path
) -> None:
    # A larger network holds all tensors of a smaller one, and would give wrong numbers in silence.
    tensors = {f"model.{key}": t for key, t in tensors_of(tiny).items()}
    torch.save({**tensors, "model.fc.weight": torch.ones(3)}, tmp_path / "w.pt")
    assert "not in the model: fc.weight (1)" in refusal(
        f"{tiny}:net", weights=str(tmp_path / "w.pt")
    )


def test_a_checkpoint_with_foreign_objects_says_what_to_save(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "args": Path("x")}, tmp_path / "w.pt")
    message = refusal(weights=str(tmp_path / "w.pt"))
    assert "save its state_dict alone" in message and "an object of pathlib." in message
    assert "\x1b" not in message and "weights_only" not in message
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    assert "an object of argparse.Namespace: save" in refusal(weights=str(tmp_path / "w.pt"))
    torch.save({"kept": torch.ones(2).numpy()}, tmp_path / "w.pt")
    assert "_reconstruct: save" in refusal(weights=str(tmp_path / "w.pt"))


def test_a_torchscript_archive_is_told_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit itself, which is deprecated
        torch.jit.trace(nn.ReLU(), torch.ones(1)).save(str(tmp_path / "w.pt"))
    message = refusal(weights=str(tmp_path / "w.pt"))
    assert "is a TorchScript archive" in message and "weights_only" not in message


def test_a_file_cut_short_is_told_as_damaged(tiny: Path, tmp_path: Path) -> None:
    torch.save(tensors_of(tiny), tmp_path / "w.pt")
    safetensors.torch.save_file(tensors_of(tiny), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        place = tmp_path / name
        place.write_bytes(place.read_bytes()[:-40])
        assert "damaged or no PyTorch or safetensors file" in refusal(weights=str(place))


def test_a_class_that_looks_at_versions_gets_its_weights(tmp_path: Path) -> None:
    name = "torchvision/mnasnet0_5"
    state = {key: t + 1 for key, t in packed(name, seed=1).build().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    built = packed(name, weights=str(tmp_path / "w.safetensors")).build().state_dict()
    assert all(torch.equal(built[key], t) for key, t in state.items())


def test_a_whole_pickled_model_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 1, 1), tmp_path / "whole.pt")
    message = refusal(weights=str(tmp_path / "whole.pt"))
    assert "whole pickled models are refused" in message


@pytest.mark.parametrize("content", [b"", b"not a weights file", b"\x80\x04K\x01."])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_broken_weights_file_is_told_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    place = tmp_path / f"w.{suffix}"
    place.write_bytes(content)
    message = refusal(weights=str(place))
    assert f"w.{suffix}" in message
    damaged = "it is damaged or no PyTorch or safetensors file" in message
    assert damaged or "holds no tensors" in message  # a pickle may hold just a number


def test_a_file_without_tensors_asks_for_the_key(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "weights": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    assert "set model.weights_key" in refusal(weights=str(tmp_path / "w.pt"))
    both = {"student": {"net": {"a": torch.ones(1)}}, "epoch": 3, "teacher": {"a": torch.ones(1)}}
    torch.save(both, tmp_path / "w.pt")
    assert "tensors under student, teacher: set" in refusal(weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 1}, {"state_dict": {}}])
def test_a_file_that_holds_no_tensors_at_all_is_told(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "holds no tensors: save" in refusal(weights=str(tmp_path / "w.pt"))


def test_weights_that_are_not_there_are_told_with_what_may_stand_there() -> None:
    message = refusal(weights="nowhere.safetensors")
    assert "'nowhere.safetensors' is no file" in message
    assert ".safetensors, .pt or .pth" in message


# --- torchvision's named weights: downloaded, hence never in a test ------------------------------


def downloading(monkeypatch: pytest.MonkeyPatch, entries: Any, state: dict[str, Tensor]) -> None:
    """Let every weights entry of an enumeration give this state dict, without a network."""
    monkeypatch.setattr(entries, "get_state_dict", lambda self, **_: dict(state))


def with_heads(name: str) -> nn.Module:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, init_weights=False, aux_logits=True)
    model = model.to_empty(device="cpu")
    for number, tensor in enumerate(model.state_dict().values()):
        tensor.fill_(number % 7)
    return model


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("googlenet", torchvision.models.GoogLeNet_Weights),
        ("inception_v3", torchvision.models.Inception_V3_Weights),
    ],
)
def test_weights_trained_on_inputs_scaled_otherwise_bring_the_scaling_and_leave_heads_out(
    monkeypatch: pytest.MonkeyPatch, name: str, entries: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.weights")
    state = with_heads(name).state_dict()
    downloading(monkeypatch, entries, state)
    made = packed(f"torchvision/{name}", weights="DEFAULT")
    assert made.arguments == {"transform_input": True}
    built: Any = made.build()
    assert built.transform_input is True
    own = built.state_dict()
    assert not any(key.lower().startswith("aux") for key in own)
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    asked = packed(
        f"torchvision/{name}", weights="DEFAULT", arguments={"transform_input": False}
    ).build()
    assert asked.transform_input is False


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_file_with_auxiliary_heads_loads_without_them(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.weights")
    state = with_heads(name).state_dict()
    torch.save(state, tmp_path / "w.pth")
    built = packed(f"torchvision/{name}", weights=str(tmp_path / "w.pth")).build()
    assert "leaving out the auxiliary heads: " in caplog.text
    assert all(torch.equal(value, state[key]) for key, value in built.state_dict().items())


def test_named_weights_of_old_names_are_loaded_as_torchvision_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torchvision.models.densenet121()
    state = {k: t for k, t in model.state_dict().items() if "num_batches" not in k}
    old = {key.replace("norm1.", "norm.1."): t for key, t in state.items()}
    downloading(monkeypatch, torchvision.models.DenseNet121_Weights, old)
    built = packed("torchvision/densenet121", weights="DEFAULT").build()
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in built.state_dict().items())


def test_named_weights_of_other_arguments_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = torchvision.models.SqueezeNet1_1_Weights
    downloading(monkeypatch, entries, torchvision.models.squeezenet1_1().state_dict())
    message = refusal("torchvision/squeezenet1_1", weights="DEFAULT", arguments={"num_classes": 3})
    assert "do not go with model.arguments {'num_classes': 3}" in message


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.DEFAULT"])
def test_named_weights_bring_their_transform_and_classes(
    monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    model = torchvision.models.squeezenet1_1()
    downloading(monkeypatch, torchvision.models.SqueezeNet1_1_Weights, model.state_dict())
    made = packed("torchvision/squeezenet1_1", weights=weights)
    assert (made.transform.resize, made.transform.crop) == (256, 224)
    assert made.transform_from == "the preset of SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert made.classes[:2] == ("tench", "goldfish")


def test_named_weights_torchvision_does_not_have_are_told_with_those_it_has() -> None:
    message = refusal("torchvision/squeezenet1_1", weights="IMAGENET21K")
    assert "torchvision has IMAGENET1K_V1" in message


def test_without_a_network_named_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("name resolution failed")

    entry = torchvision.models.SqueezeNet1_1_Weights
    monkeypatch.setattr(entry, "get_state_dict", unreachable)
    message = refusal("torchvision/squeezenet1_1", weights="DEFAULT")
    assert "name resolution failed" in message
    assert "give its path" in message


# --- transform and classes -----------------------------------------------------------------------


def test_the_specs_transform_comes_before_all_others(tiny: Path) -> None:
    asked = Transform(resize=30, crop=30)
    made = pack(ModelSpec(name=f"{tiny}:declaring"), 0, asked)
    assert made.transform == asked
    assert made.transform_from == "the job spec"


def test_a_factory_may_declare_transform_and_classes(tiny: Path) -> None:
    made = packed(f"{tiny}:declaring")
    assert made.transform == Transform(resize=20, crop=16)
    assert made.transform_from == "the model's factory"
    assert made.classes == ("yes", "no")
    ours = packed("deconvoy/zfnet_small")
    assert ours.transform.mean == SHAPES_MEAN
    assert ours.classes == CLASSES


def test_a_declared_transform_that_is_none_is_told(tiny: Path) -> None:
    message = refusal(f"{tiny}:declaring", arguments={"colour": 3})
    assert "declared transform" in message


def test_torchvision_models_have_their_default_preset_and_others_imagenets(tiny: Path) -> None:
    made = packed("torchvision/alexnet", arguments={"num_classes": 2})
    assert (made.transform.resize, made.transform.crop) == (256, 224)
    assert "torchvision's default preset of alexnet" in made.transform_from
    made = packed("torchvision/efficientnet_b0", arguments={"num_classes": 2})
    assert made.transform.interpolation == "bicubic"
    made = packed(f"{tiny}:net")
    assert made.transform == IMAGENET
    assert "ImageNet" in made.transform_from


def test_classes_come_from_the_spec_as_a_list_or_a_file(tiny: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\n\n dog \n")
    assert packed(f"{tiny}:declaring", classes=str(names)).classes == ("cat", "dog")
    assert packed(f"{tiny}:declaring", classes=("a", "b")).classes == ("a", "b")
    assert "'nowhere.txt' cannot be read" in refusal(f"{tiny}:net", classes="nowhere.txt")
