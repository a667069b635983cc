"""Checkpoints of timm and of MicroNet's authors: recognised, loaded, answering as in their own projects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import models
from models.checkpoints import SOURCES, recognise
from models.normalisation import HALF, IMAGENET, UNIT, Normalisation, fold_normalisation
from models.weights import load_weights, read_checkpoint, save_weights
from pipeline.artifacts import AlpharhoError
from tests.models.foreign_state import CLASSES, FOREIGN, foreign_state, images
from tests.models.published import DATA
from tests.models.torchvision_state import torchvision_state

LOGITS = json.loads((DATA / "foreign_logits.json").read_text())
EXACT = 1e-5


def saved(name: str, folder: Path) -> Path:
    """The network's checkpoint under the file name that its project gives it."""
    path = folder / FOREIGN[name].file
    torch.save(foreign_state(name), path)
    return path


def loaded(name: str, path: Path, source: str | None = None) -> models.MobileNet:
    foreign = FOREIGN[name]
    padding = SOURCES[source or foreign.source].padding
    assert padding is not None
    module = models.build(foreign.model, foreign.alpha, CLASSES, padding)
    assert load_weights(module, path, source).name == (source or foreign.source)
    return module.eval()


@torch.no_grad()
def off(name: str, module: nn.Module) -> float:
    """Largest difference to the project's own answers, relative to their largest logit."""
    want = [torch.tensor(row, dtype=torch.float64) for row in LOGITS[name]]
    got = [module.double()(image.double())[0] for image in images()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", FOREIGN)
def test_weights_answer_as_in_their_own_project(name: str, tmp_path: Path) -> None:
    assert off(name, loaded(name, saved(name, tmp_path))) < EXACT


@pytest.mark.parametrize(
    ("name", "other"), [("tf_mobilenetv3_small_100", "timm"), ("mobilenetv3_small_100", "timm_tf")]
)
def test_the_wrong_kind_of_timm_would_answer_something_else(name: str, other: str, tmp_path: Path) -> None:
    assert off(name, loaded(name, saved(name, tmp_path), other)) > 100 * EXACT


def test_an_imported_network_written_as_our_own_is_the_same_function(tmp_path: Path) -> None:
    module = loaded("mobilenetv1_100", saved("mobilenetv1_100", tmp_path))
    save_weights(module, tmp_path / "own.safetensors", {})
    again = models.build("v1", 1.0, CLASSES, "torch").eval()
    assert load_weights(again, tmp_path / "own.safetensors").name == "alpharho"
    assert off("mobilenetv1_100", again) < EXACT


def test_safetensors_and_the_prefix_of_several_devices(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in foreign_state("micronet_m0").items()}
    save_file(state, tmp_path / "m0.safetensors")
    torch.save({"state_dict": state, "epoch": 600}, tmp_path / "m0.pth.tar")
    for path in (tmp_path / "m0.safetensors", tmp_path / "m0.pth.tar"):
        assert off("micronet_m0", loaded("micronet_m0", path)) < EXACT


# whose it is


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("mobilenetv3_large_100_ra-f55367f5.pth", "timm"),
        ("mobilenetv3_large_100.ra_in1k.safetensors", "timm"),
        ("mobilenetv3_large_100.ra4_e3600_r224_in1k.safetensors", "timm_half"),
        ("mobilenetv3_large_100_1k_miil_78_0-66471c13.pth", "timm_unit"),
        ("mobilenetv2_100.ra_in1k/model.safetensors", "timm"),
    ],
)
def test_timms_file_names_tell_the_preprocessing(file: str, source: str) -> None:
    state = foreign_state("mobilenetv3_large_100")
    assert recognise(state, Path(file)).source.name == source


def test_the_hubs_config_tells_padding_and_normalisation(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(foreign_state("tf_mobilenetv3_small_100"), path)
    trained = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"architecture": "tf_mobilenetv3_small_100", "pretrained_cfg": trained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = read_checkpoint(path).source
    assert (source.padding, source.norm_eps) == ("tf", 1e-3)
    assert source.normalisation == Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def refused(state: dict[str, Tensor], named: str | None, *said: str) -> None:
    with pytest.raises(AlpharhoError) as caught:
        recognise(state, Path("w.pth"), named)
    assert "\n" not in str(caught.value)
    for words in ("w.pth", *said):
        assert words in str(caught.value)


def test_what_nothing_tells_is_asked_for() -> None:
    state = foreign_state("mobilenetv3_small_100")
    refused(state, None, "--source", "timm_tf (padding tf, mean 0.5 0.5 0.5", "timm_unit")
    refused(state, "torchvision", "keys of timm", "timm, timm_half, timm_unit, timm_tf")
    assert recognise(state, Path("w.pth"), "timm_tf").source.padding == "tf"
    with pytest.raises(AlpharhoError, match="unknown source 'keras'; choose one of alpharho"):
        recognise(state, Path("w.pth"), "keras")


def test_nobodys_keys_are_refused_with_what_is_supported() -> None:
    refused({"conv1.weight": torch.ones(1)}, None, "conv1.weight", "torchvision: mobilenet_v2", "micronet")


@pytest.mark.parametrize(
    ("state", "source", "classes"),
    [
        (foreign_state("mobilenetv3_small_100"), "timm", CLASSES),
        (foreign_state("micronet_m0"), "micronet", CLASSES),
        (torchvision_state("v3_small"), "torchvision", 10),
        (dict(models.build("v3_small", 0.5, 7).state_dict()), "alpharho", 7),
        (dict(models.build("micronet_m0", 0.5, 6).state_dict()), "alpharho", 6),
    ],
)
def test_keys_tell_the_project_and_the_number_of_classes(
    state: dict[str, Tensor], source: str, classes: int
) -> None:
    found = recognise(state, Path("mobilenetv3_small_100_lamb-266a294c.pth"))
    assert (found.source.name, found.classes) == (source, classes)


def test_another_network_of_timm_is_refused_by_its_keys(tmp_path: Path) -> None:
    state = foreign_state("mobilenetv1_100")
    state["conv_head.weight"] = torch.ones(1024, 1024, 1, 1)
    torch.save(state, tmp_path / "mobilenetv1_100h.pth")
    with pytest.raises(
        AlpharhoError, match=r"has conv_head.weight, for which .* of timm, read are mobilenetv1_100"
    ):
        load_weights(models.build("v1", 1.0, CLASSES, "torch"), tmp_path / "mobilenetv1_100h.pth")


# normalisation


@torch.no_grad()
@pytest.mark.parametrize("normalisation", [IMAGENET, UNIT, HALF], ids=["imagenet", "unit", "half"])
@pytest.mark.parametrize("name", ["v1", "v2", "micronet_m0"])
def test_folded_normalisation_is_exact_inside_the_image(name: str, normalisation: Normalisation) -> None:
    """The first convolution's outputs agree wherever they see no padding."""
    theirs, ours = (models.build(name, 0.5, 4, "torch").double().eval() for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    fold_normalisation(ours, normalisation.mean, normalisation.std)
    pixels = torch.randint(0, 256, (1, 3, 32, 32)).double()
    mean, std = (
        torch.tensor(values).double().view(1, 3, 1, 1) for values in (normalisation.mean, normalisation.std)
    )
    want = theirs.features[0]((pixels / 255 - mean) / std)
    got = ours.features[0]((pixels - 127.5) / 127.5)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1], rtol=1e-6, atol=1e-6)
    assert (got - want).abs().max() > 1e-3 or normalisation == HALF  # at the border, padding means grey
