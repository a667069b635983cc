"""The main job: trained weights to model.onnx and three .tflite files, each verified, and a manifest.

Stages run in one direction; each writes its file whole, checks it, and only then does the next begin. A
failed check ends the job with one line; files that stages before it wrote stay, the manifest is written only
when all have passed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import models
from export.check import (
    DelegateAudit,
    Parity,
    audit_delegate,
    check_delegate,
    check_op_budget,
    check_parity,
    parity,
)
from export.graph import Graph
from export.head import with_head
from export.metadata import Metadata
from export.runtime import Logits, Predictor, load_onnx_predictor, load_tflite_predictor
from export.to_onnx import to_onnx
from models.checkpoints import SOURCES
from models.cost import cost_of
from models.normalisation import fold_normalisation
from models.weights import Checkpoint, fill, read_card, read_checkpoint
from pipeline import imagenet, manifest
from pipeline.artifacts import AlpharhoError, locked, sha256_of, write_bytes, write_text
from pipeline.budget import op_budget
from pipeline.convert import (
    CALIBRATION_IMAGES,
    Calibration,
    add_head_argument,
    add_io_arguments,
    add_rescue_argument,
    convert_graph,
    load_graph,
    load_labels,
    rescued,
)
from pipeline.data import Dataset, Labels, Split, normalise, open_dataset
from pipeline.evaluate import accuracy_of, agreement_of, batched, module_predictor, predict, softmax
from pipeline.manifest import Accuracy, Artifact, Manifest, Quantised, Weights
from pipeline.summary import summary
from pipeline.variant import BUILD, IMAGENET_CLASSES, PRECISIONS, Variant
from quantize.int8 import Io
from quantize.recipes import RECIPES, recipe_named

SHIPPED_WEIGHTS = Path(models.__file__).parent / "weights"
SHIPPED_LICENCE = "MIT"  # this project's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to export. `weights` None means the variant's shipped ones, `out` None means build/<variant>.

    `dataset` "none" means pictures without labels, those of `calibration`; else `calibration` None means the
    data set's own.
    """

    model: str
    alpha: float = 1.0
    rho: float = 1.0
    dataset: str = "fashion_mnist"
    calibration: Path | None = None
    labels: Path | None = None
    weights: Path | None = None
    source: str | None = None
    licence: str = ""
    padding: str | None = None
    out: Path | None = None
    io: Io = field(default_factory=Io)
    recipe: str = "int8"
    rescue: bool = False
    head: str | None = None
    calibration_images: int = CALIBRATION_IMAGES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A trained network ready for export, and the images it is verified on."""

    variant: Variant
    dataset: Dataset
    module: models.MobileNet
    weights: Weights


@dataclass(slots=True)
class Record:
    """What the stages have found so far, by stage name."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    delegate: dict[str, DelegateAudit] = field(default_factory=dict)
    reports: dict[str, Mapping[str, object]] = field(default_factory=dict)


def export(request: Request, say: Callable[[str], None]) -> Manifest:
    """Run the whole job and return its manifest, which is also written; `say` hears of each stage.

    AlpharhoError for bad input, CheckError for a stage that fails its check.
    """
    source = prepare(request)
    out = request.out or BUILD / source.variant.name
    with locked(out):
        (out / manifest.FILE_NAME).unlink(missing_ok=True)  # it speaks of files that are about to be replaced
        return _Job(request, source, out, say).run()


def prepare(request: Request) -> Source:
    """Open the data set, build the network and load its weights; AlpharhoError for whatever does not fit."""
    recipe_named(request.recipe)
    _refuse_headed(request.model)
    if request.calibration_images < 1:
        raise AlpharhoError(
            f"{request.calibration_images} calibration images; choose at least 1, 200 or more are good"
        )
    models.network(request.model, request.alpha)
    checkpoint = None if request.weights is None else read_checkpoint(request.weights, request.source)
    dataset = _images(request, checkpoint)
    variant = Variant.of(request.model, request.alpha, request.rho, dataset.base_resolution)
    checkpoint = checkpoint or read_checkpoint(shipped_weights(variant, dataset))
    padding = request.padding or checkpoint.padding or "torch"
    module = models.build(variant.model, variant.alpha, len(dataset.classes), padding)
    fill(module, checkpoint)
    normalisation = checkpoint.source.normalisation
    fold_normalisation(module, normalisation.mean, normalisation.std)
    return Source(variant, dataset, module.eval(), _provenance(request, checkpoint, dataset))


def _refuse_headed(model: str) -> None:
    """AlpharhoError for a network with a head, which this project builds and measures but does not train."""
    if model in models.HEADED:
        raise AlpharhoError(
            f"{model} has a head that is not trained here, so there are no weights to export; "
            f"'python -m pipeline bench {model}' writes and measures its files with untrained ones, "
            "and 'python -m pipeline convert' takes an ONNX file of one that you have trained"
        )


def _images(request: Request, checkpoint: Checkpoint | None) -> Dataset:
    """What to calibrate and to verify on, with the classes that the weights tell apart."""
    foreign = checkpoint is not None and checkpoint.source.family != "alpharho"
    classes = checkpoint.recognised.classes if checkpoint else None
    of_imagenet = foreign and classes == IMAGENET_CLASSES
    if request.dataset == imagenet.UNLABELLED:
        names = imagenet.class_names() if of_imagenet else tuple(f"class {i}" for i in range(classes or 0))
        dataset = imagenet.unlabelled(request.calibration, names)
    else:
        dataset = open_dataset(request.dataset)
        dataset = imagenet.relabelled(dataset) if of_imagenet else dataset
    if request.calibration is not None:
        dataset = replace(dataset, calibration=imagenet.picture_split(request.calibration))
    if request.labels is not None:
        dataset = replace(dataset, classes=load_labels(request.labels, len(dataset.classes)))
    return dataset


def _provenance(request: Request, checkpoint: Checkpoint, dataset: Dataset) -> Weights:
    """Where the weights come from: from the card beside them, or from what is known of the published file."""
    path, sha256 = checkpoint.path, sha256_of(checkpoint.path)
    card, known = read_card(path), imagenet.known_file(sha256)
    licence = SHIPPED_LICENCE if path.parent == SHIPPED_WEIGHTS else card.get("licence", "")
    trained_on = imagenet.TRAINED_ON if known else card.get("trained on", "")
    if not trained_on and checkpoint.source.family == "alpharho" and dataset.name != imagenet.UNLABELLED:
        trained_on = dataset.name
    return Weights(
        source=str(path),
        sha256=sha256,
        recognised=checkpoint.source.name,
        licence=request.licence or (known.licence if known else licence),
        trained_on=trained_on,
        licence_of_data=card.get("licence of the data", ""),
    )


def shipped_weights(variant: Variant, dataset: Dataset) -> Path:
    """The checkpoint that this repository ships for the variant; AlpharhoError that lists those there are."""
    path = SHIPPED_WEIGHTS / f"{variant.name}.{dataset.name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SHIPPED_WEIGHTS.glob("*.safetensors"))) or "none"
        raise AlpharhoError(
            f"no weights are shipped for {variant.name} on {dataset.name} (shipped: {known}); "
            f"train some with 'python -m pipeline train {variant.model} --alpha {variant.alpha:g}' "
            "and give them with --weights"
        )
    return path


def calibration_images(split: Split, count: int, resolution: int, seed: int) -> NDArray[np.float32]:
    """`count` images drawn by `seed` (all, if there are fewer), float32 NHWC in [-1, 1]."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[:count])
    return normalise(split.take(chosen, resolution)[0])


class _Job:
    def __init__(self, request: Request, source: Source, out: Path, say: Callable[[str], None]) -> None:
        self.request, self.source, self.out, self.say = request, source, out, say
        self.record = Record()
        self.logits: dict[str, Logits] = {}
        self.labels: Labels = np.empty(0, np.int64)
        self.budget = op_budget(source.variant, source.module.padding)

    def run(self) -> Manifest:
        self._evaluate("pytorch", module_predictor(self.source.module))
        graph = self._onnx()
        write_text(self.out / "labels.txt", "".join(f"{name}\n" for name in self.source.dataset.classes))
        calibration = self._calibration()
        if self.request.rescue:
            calibration = rescued(graph, calibration, self.say)
        for precision in PRECISIONS:
            self._tflite(precision, graph, calibration)
        finished = self._manifest(calibration)
        manifest.save(finished, self.out)
        return finished

    def _onnx(self) -> Graph:
        self.say("model.onnx: exporting and checking against PyTorch")
        path, started = self.out / "model.onnx", time.perf_counter()
        model = to_onnx(models.deployed(self.source.module), self.source.variant.resolution)
        write_bytes(path, model.SerializeToString())
        self.record.artifacts["onnx"] = Artifact.of(path, started)
        self._evaluate("onnx", load_onnx_predictor(path, normalise))
        self._check_parity("onnx", "pytorch", path)
        return with_head(load_graph(path), self.request.head)

    def _calibration(self) -> Calibration:
        split, request = self.source.dataset.calibration, self.request
        images = calibration_images(
            split, request.calibration_images, self.source.variant.resolution, request.seed
        )
        return Calibration(batched(images), RECIPES[request.recipe], request.io)

    def _tflite(self, precision: str, graph: Graph, calibration: Calibration) -> None:
        self.say(f"{precision}.tflite: converting and checking")
        path, started = self.out / f"{precision}.tflite", time.perf_counter()
        converted = convert_graph(precision, graph, calibration, self._about(precision))
        write_bytes(path, converted.content)
        self.record.reports[precision] = converted.report
        self.record.artifacts[precision] = Artifact.of(path, started)
        added = converted.report.get("added_operators", {})
        assert isinstance(added, dict)
        budget = {op: count + added.get(op, 0) for op, count in self.budget.items()}
        check_op_budget(converted.graph.op_counts(), budget, path)
        self.record.delegate[precision] = audit_delegate(path)
        check_delegate(self.record.delegate[precision], path)
        self._evaluate(precision, load_tflite_predictor(path, normalise))
        if precision == "float32":
            self._check_parity("float32", "onnx", path)
        else:
            self.record.agreement[precision] = agreement_of(self.logits[precision], self.logits["float32"])

    def _evaluate(self, stage: str, predictor: Predictor) -> None:
        split, resolution = self.source.dataset.test, self.source.variant.resolution
        self.logits[stage], self.labels = predict(predictor, split, resolution, stage)
        if self.source.dataset.name != imagenet.UNLABELLED:
            self.record.accuracy[stage] = accuracy_of(self.logits[stage], self.labels)

    def _check_parity(self, stage: str, reference: str, path: Path) -> None:
        expected = self.logits[reference]
        if stage == "float32" and self.request.head == "probabilities":
            expected = softmax(expected)
        self.record.parity[stage] = parity(self.logits[stage], expected)
        check_parity(self.record.parity[stage], f"{path} against {reference}")

    def _about(self, precision: str) -> Metadata:
        source, request, variant = self.source, self.request, self.source.variant
        details = {
            "model": variant.model,
            "alpha": f"{variant.alpha:g}",
            "rho": f"{request.rho:g}",
            "resolution": str(variant.resolution),
            "precision": precision,
            "recipe": request.recipe if precision == "int8" else "",
            "training data": source.weights.trained_on,
            "licence of the data": source.weights.licence_of_data,
            "weights": Path(source.weights.source).name,
            "weights sha256": source.weights.sha256,
            "onnx sha256": self.record.artifacts["onnx"].sha256,
            "made with": f"alpharho {version('alpharho')}",
        }
        gives = "probabilities" if request.head == "probabilities" else "logits"
        return Metadata(
            name=variant.name,
            description=f"Image classifier: {gives} of {len(source.dataset.classes)} classes.",
            license=source.weights.licence,
            labels=source.dataset.classes,
            details={key: value for key, value in details.items() if value},
        )

    def _manifest(self, calibration: Calibration) -> Manifest:
        source, request = self.source, self.request
        variant, classes = source.variant, len(source.dataset.classes)
        cost = cost_of(variant.model, variant.alpha, variant.resolution, classes)
        return Manifest(
            variant=variant.name,
            model=variant.model,
            alpha=variant.alpha,
            rho=request.rho,
            resolution=variant.resolution,
            dataset=source.dataset.name,
            num_classes=classes,
            seed=request.seed,
            weights=source.weights,
            macs=cost.macs,
            params=cost.params,
            artifacts=self.record.artifacts,
            accuracy=self.record.accuracy,
            agreement=self.record.agreement,
            parity=self.record.parity,
            delegate=self.record.delegate,
            quantised=Quantised(
                recipe=request.recipe,
                calibration_images=calibration.images,
                input=request.io.input,
                output=request.io.output,
                report=self.record.reports["int8"],
            ),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `export`."""
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(models.NAMES)}")
    parser.add_argument("--alpha", type=float, default=1.0, help="width multiplier (%(default)s)")
    parser.add_argument("--rho", type=float, default=1.0, help="resolution multiplier (%(default)s)")
    parser.add_argument(
        "--dataset",
        help="a data set's name or a folder of pictures; with --calibration or ImageNet's weights by default "
        "'none', that is no labels and no accuracy, else fashion_mnist",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="pictures to calibrate on instead of the data set's"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint of ours, torchvision, timm or MicroNet's authors, or 'imagenet'; by default the "
        "shipped ones",
    )
    parser.add_argument(
        "--source", choices=list(SOURCES), help="whose the checkpoint is, where its keys and name do not tell"
    )
    parser.add_argument("--license", dest="licence", default="", help="of the weights, for the metadata")
    parser.add_argument(
        "--padding",
        choices=list(models.PADDINGS),
        help="of the network; by default what the weights' file says",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (build/<variant>)")
    parser.add_argument(
        "--recipe", default="int8", choices=list(RECIPES), help="how int8 is made (%(default)s)"
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help="for int8 (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of calibration images (%(default)s)"
    )
    add_rescue_argument(parser)
    add_head_argument(parser, "logits")
    add_io_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """The verb `export`: runs the main job and prints its summary."""
    options = {name: getattr(arguments, name) for name in REQUEST_OPTIONS}
    io = Io(input=arguments.input_type, output=arguments.output_type)
    request = Request(io=io, dataset=_dataset(arguments), weights=_weights(arguments), **options)
    finished = export(request, say=lambda stage: print(stage, file=sys.stderr, flush=True))
    print(summary(finished))
    print(f"written to {request.out or BUILD / finished.variant}")
    return 0


def _dataset(arguments: argparse.Namespace) -> str:
    if arguments.dataset is not None:
        return str(arguments.dataset)
    unlabelled = arguments.calibration is not None or arguments.weights == imagenet.NAME
    return imagenet.UNLABELLED if unlabelled else "fashion_mnist"


def _weights(arguments: argparse.Namespace) -> Path | None:
    if arguments.weights == imagenet.NAME:
        return imagenet.find_weights(arguments.model, arguments.alpha)
    return None if arguments.weights is None else Path(arguments.weights)


REQUEST_OPTIONS = (
    "model",
    "alpha",
    "rho",
    "calibration",
    "labels",
    "source",
    "licence",
    "padding",
    "out",
    "recipe",
    "rescue",
    "head",
    "calibration_images",
    "seed",
)
