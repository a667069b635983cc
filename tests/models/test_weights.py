from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from models.checkpoints import our_keys, recognise
from models.weights import (
    load_weights,
    read_metadata,
    read_state,
    save_weights,
    write_state,
)
from pipeline.artifacts import AlpharhoError
from tests.models.published import DATA
from tests.models.torchvision_state import CLASSES, image, torchvision_state

TORCHVISION = ("v2", "v3_small", "v3_large")


def net(classes: int = CLASSES, padding: str = "tf") -> models.MobileNet:
    """The smallest network with every kind of tensor, its statistics moved off their start."""
    module = models.build("v3_small", 0.25, classes, padding)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.get_buffer("running_mean"), norm.get_buffer("running_var")):
                tensor.add_(torch.rand_like(tensor))
    return module.eval()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def refuses(module: models.MobileNet, path: Path, *said: str) -> None:
    """Loading fails with one line that holds every one of `said`, and leaves the module alone."""
    before = state_of(module)
    with pytest.raises(AlpharhoError) as caught:
        load_weights(module, path)
    assert "\n" not in str(caught.value)
    for words in (path.name, *said):
        assert words in str(caught.value)
    assert same(before, state_of(module))


# our own files


def test_round_trip_keeps_every_weight_and_the_notes(tmp_path: Path) -> None:
    trained, path = net(), tmp_path / "w.safetensors"
    save_weights(trained, path, {"model": "v3_small", "alpha": "0.25"})
    fresh = models.build("v3_small", 0.25, CLASSES).eval()
    load_weights(fresh, path)
    assert same(state_of(trained), state_of(fresh))
    assert read_metadata(path) == {"model": "v3_small", "alpha": "0.25", "padding": "tf"}
    assert not any("num_batches_tracked" in key for key in read_state(path))


def test_half_precision_file_becomes_float32(tmp_path: Path) -> None:
    trained, path = net(), tmp_path / "half.safetensors"
    save_weights(trained, path, {}, torch.float16)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    fresh = models.build("v3_small", 0.25, CLASSES).eval()
    load_weights(fresh, path)
    for key, value in fresh.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.equal(value, trained.state_dict()[key].half().float())


def test_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    trained, notes = net(), {name: name for name in "qwertyuiopasdfgh"}
    for name, order in (("a", list(notes)), ("b", sorted(notes))):
        save_weights(trained, tmp_path / f"{name}.safetensors", {key: notes[key] for key in order})
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert len(header) % 8 == 0 and list(json.loads(header)["__metadata__"]) == sorted([*notes, "padding"])


def test_a_value_half_precision_cannot_hold_is_not_written(tmp_path: Path) -> None:
    trained, path = net(), tmp_path / "half.safetensors"
    nn.init.constant_(trained.get_parameter("classifier.3.bias"), 1e6)
    with pytest.raises(
        AlpharhoError, match=r"as float16: classifier\.3\.bias has values that are not finite"
    ):
        save_weights(trained, path, {}, torch.float16)
    assert os.listdir(tmp_path) == []


def test_our_keys_from_a_torch_file_and_from_a_training_scripts_wrapper(tmp_path: Path) -> None:
    trained = net()
    for i, content in enumerate((trained.state_dict(), {"epoch": 3, "state_dict": trained.state_dict()})):
        path = tmp_path / f"{i}.pt"
        torch.save(content, path)
        fresh = models.build("v3_small", 0.25, CLASSES)
        load_weights(fresh, path)
        assert same(state_of(trained), state_of(fresh))
        assert read_metadata(path) == {}


def test_padding_of_the_training_is_not_forgotten(tmp_path: Path) -> None:
    save_weights(net(padding="torch"), tmp_path / "w.safetensors", {})
    load_weights(net(padding="torch"), tmp_path / "w.safetensors")
    refuses(net(), tmp_path / "w.safetensors", "padding 'torch'", "'tf'")


# torchvision's files


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_weights_give_torchvisions_logits(name: str, tmp_path: Path) -> None:
    torch.save(torchvision_state(name), tmp_path / "w.pth")
    module = models.build(name, 1.0, CLASSES, "torch").eval()
    load_weights(module, tmp_path / "w.pth")
    want = torch.tensor(json.loads((DATA / "torchvision_logits.json").read_text())[name])
    torch.testing.assert_close(module(image()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_key_has_a_place_of_its_own(name: str) -> None:
    with torch.device("meta"):
        module = models.build(name, 1.0, CLASSES, "torch")
    theirs = torchvision_state(name)
    ours = our_keys(module, recognise(theirs, Path("w.pth")))
    places = {ours[key]: tuple(value.shape) for key, value in theirs.items()}
    assert len(places) == len(theirs)
    assert places == {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_torchvision_weights_need_torchs_padding(tmp_path: Path) -> None:
    torch.save(torchvision_state("v2"), tmp_path / "w.pth")
    refuses(models.build("v2", 1.0, CLASSES), tmp_path / "w.pth", "padding 'torch'", "'tf'")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda state: state.pop("features.3.conv.1.0.weight"),
            ["has no features.3.depthwise.conv.weight", "144x1x3x3"],
        ),
        (
            lambda state: state.update({"features.3.conv.1.0.weight": torch.ones(8, 1, 3, 3)}),
            [
                "features.3.conv.1.0.weight has shape 8x1x3x3",
                "features.3.depthwise.conv.weight has shape 144x1x3x3",
            ],
        ),
        (
            lambda state: state.update({"features.19.0.weight": torch.ones(1)}),
            ["has features.19.0.weight", "no place"],
        ),
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_torchvision_keys_that_do_not_fit_are_named(
    spoil: Callable[[dict[str, Tensor]], object], said: list[str], tmp_path: Path
) -> None:
    state = torchvision_state("v2")
    spoil(state)
    torch.save(state, tmp_path / "w.pth")
    refuses(models.build("v2", 1.0, CLASSES, "torch"), tmp_path / "w.pth", *said)


# files that do not fit


def test_wrong_class_count_says_which(tmp_path: Path) -> None:
    save_weights(net(5), tmp_path / "w.safetensors", {})
    refuses(net(), tmp_path / "w.safetensors", "has 5 classes", "has 10", "num_classes=5")


def test_another_width_names_the_first_key_and_both_shapes(tmp_path: Path) -> None:
    save_weights(models.build("v3_small", 0.5, CLASSES), tmp_path / "w.safetensors", {})
    refuses(
        net(),
        tmp_path / "w.safetensors",
        "features.2.project.conv.weight has shape 16x40x1x1",
        "has shape 8x40x1x1",
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("features.0.conv.weight", None, "has no features.0.conv.weight"),
        ("features.0.extra", torch.ones(2), "has features.0.extra"),
        ("features.0.conv.weight", torch.ones(8, 3, 3, 3, dtype=torch.int8), "is torch.int8"),
        (
            "features.0.norm.running_var",
            torch.full((8,), torch.nan),
            "features.0.norm.running_var has values",
        ),
    ],
)
def test_our_keys_that_do_not_fit_are_named(
    key: str, value: Tensor | None, said: str, tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in net().state_dict().items() if (name, value) != (key, None)}
    if value is not None:
        state[key] = value
    save_file(state, tmp_path / "w.safetensors")
    refuses(net(), tmp_path / "w.safetensors", said)


# files that cannot be read


def test_no_file_and_no_known_format(tmp_path: Path) -> None:
    refuses(net(), tmp_path / "gone.safetensors", "no weights file")
    refuses(net(), tmp_path, "no weights file")
    (tmp_path / "w.h5").write_bytes(b"")
    refuses(net(), tmp_path / "w.h5", ".safetensors, .pth, .pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kept", [0, 1, 7, 9, 1000, 0.5, 0.999])
def test_a_file_cut_off_anywhere_is_reported(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(net().state_dict(), path)
    else:
        save_weights(net(), path, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    refuses(net(), path, "is damaged")


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
@pytest.mark.parametrize(
    "content",
    [b"\0" * 64, b"not weights at all\n" * 9, bytes(range(256)), b"\x80\x02}q\x00.", b"\x80\x02X\x05"],
)
def test_a_file_of_something_else_is_reported(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    refuses(net(), path)


class Payload:
    """Unpickling this makes the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_never_runs(legacy: bool, tmp_path: Path) -> None:
    path, trap = tmp_path / "w.pth", tmp_path / "it-ran"
    torch.save({"weights": Payload(trap)}, path, _use_new_zipfile_serialization=not legacy)
    refuses(net(), path, "more than tensors")
    assert not trap.exists()


@pytest.mark.parametrize("content", [{}, [1, 2], torch.ones(3), {"epoch": 3}, {1: torch.ones(3)}])
def test_a_file_without_named_tensors_is_reported(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    refuses(net(), tmp_path / "w.pt", "state_dict")


def test_metadata_of_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\xff" * 32)
    with pytest.raises(AlpharhoError, match=re.escape(str(path))):
        read_metadata(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_state(path, {"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="non contiguous"):
        write_state(path, {"a": torch.ones(4, 3).T}, {})
    assert os.listdir(tmp_path) == ["w.safetensors"] and read_state(path)["a"].tolist() == [1, 1]
