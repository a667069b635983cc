"""Training from scratch, deterministic by seed and safe to kill: started again, a run goes on where it was.

Everything random is drawn from generators seeded by (seed, epoch) or (seed, step), so that a checkpoint needs
no generator state and a resumed run ends with the same bits. The weights that are kept are the exponential
moving average, rounded to float16 as they are shipped, and they are evaluated in that form.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import models
from models.weights import load_weights, write_state
from pipeline.artifacts import AlpharhoError, UsageError, sha256_of, write_text
from pipeline.data import Dataset, Images, Split, normalise, open_dataset
from pipeline.variant import Variant

OUT = Path("build") / "train"
EVALUATION_BATCH = 250
SHIFT_FRACTION = 1 / 14  # of the side: 4 of 56 pixels
ERASED_FRACTION = 2 / 7  # of the side: 16 of 56 pixels
CHECKPOINT_SCHEMA = 1
CHECKPOINT_STEPS = 1000
SUPPORTED_DEVICES = "cpu, or cuda with a GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """All that decides the weights, beside the machine's arithmetic. AlpharhoError for a value out of range.

    `learning_rate` is the peak of a cosine after `warmup_epochs` of linear rise; `weight_decay` is for dense
    weights only; `erasing` is the share of training images that lose a square.
    """

    model: str
    alpha: float = 1.0
    rho: float = 1.0
    dataset: str = "fashion_mnist_full"
    epochs: int = 40
    batch_size: int = 128
    optimiser: str = "sgd"
    learning_rate: float = 0.1
    warmup_epochs: float = 2.0
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    erasing: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value that has a range; the registry checks model and alpha."""
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise UsageError(f"{name} is {value}; choose a value from {lowest:g} to {highest:g}")
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"unknown optimiser {self.optimiser!r}; choose one of {', '.join(OPTIMISERS)}")


RANGES: Mapping[str, tuple[float, float]] = {
    "rho": (0.01, 16),
    "epochs": (1, 100_000),
    "batch_size": (2, 65_536),
    "learning_rate": (1e-9, 100),
    "warmup_epochs": (0, 100_000),
    "weight_decay": (0, 1),
    "label_smoothing": (0, 0.99),
    "ema_decay": (0, 0.999999),
    "erasing": (0, 1),
    "seed": (0, 2**31 - 1),
}


def _sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)


def _rmsprop(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Decay and momentum 0.9, epsilon inside the root as in the authors' TensorFlow: 0.001 = sqrt(1e-6)."""
    return torch.optim.RMSprop(groups, lr=0.0, alpha=0.9, momentum=0.9, eps=1e-3)


OPTIMISERS: Mapping[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "rmsprop": _rmsprop,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWeights:
    """What a finished run leaves: weights, their card, and their accuracy in percent on `samples` images."""

    weights: Path
    card: Path
    top1: float
    top5: float
    samples: int


@dataclass(slots=True)
class Run:
    """A run in progress on `images` training images. `average` follows `model`, buffers included."""

    recipe: TrainingRecipe
    images: int
    model: models.MobileNet
    average: models.MobileNet
    optimiser: torch.optim.Optimizer
    step: int = 0


# --- Schedule, augmentation, one step -----------------------------------------------------------------------


def learning_rate(recipe: TrainingRecipe, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up to the peak, then half a cosine to 0 at the end of the last epoch."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1.0, total - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def augment(images: Images, generator: np.random.Generator, erasing: float) -> Images:
    """Mirror half of the images, shift all by up to 1/14 of the side, black out a square in some."""
    count, side = images.shape[:2]
    reach, square = round(side * SHIFT_FRACTION), round(side * ERASED_FRACTION)
    mirrored = np.less(generator.random(count), 0.5)
    shifts = generator.integers(-reach, reach + 1, (count, 2))
    erased = np.less(generator.random(count), erasing)
    corners = generator.integers(0, side - square + 1, (count, 2))
    result = np.zeros_like(images)
    for i, (dy, dx) in enumerate(shifts.tolist()):
        image = images[i, :, ::-1] if mirrored[i] else images[i]
        result[i, _to(dy, side), _to(dx, side)] = image[_to(-dy, side), _to(-dx, side)]
        if erased[i]:
            y, x = corners[i].tolist()
            result[i, y : y + square, x : x + square] = 0
    return result


def _to(shift: int, side: int) -> slice:
    """Where pixels land that move by `shift` and stay inside."""
    return slice(max(0, shift), side + min(0, shift))


def to_tensor(images: Images) -> Tensor:
    """uint8 NHWC to normalised float32 NCHW in channels-last memory, which CPUs train fastest with."""
    return torch.from_numpy(normalise(images)).permute(0, 3, 1, 2)


def _training_batches(
    run: Run, split: Split, resolution: int, steps_per_epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches from `run.step` to the end of the run; an epoch's last part of a batch is dropped."""
    recipe = run.recipe
    for epoch in range(run.step // steps_per_epoch, recipe.epochs):
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(split))
        for position in range(run.step % steps_per_epoch, steps_per_epoch):
            start = position * recipe.batch_size
            images, labels = split.take(order[start : start + recipe.batch_size], resolution)
            generator = np.random.default_rng((recipe.seed, epoch, position))
            yield to_tensor(augment(images, generator, recipe.erasing)), torch.from_numpy(labels)


def _train_step(run: Run, images: Tensor, labels: Tensor, rate: float) -> Tensor:
    """One update of the model and its average. Returns the loss, still on the device."""
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    torch.manual_seed(run.recipe.seed * 1_000_003 + run.step)  # dropout's draws depend on the step alone
    logits = run.model(images)
    loss = functional.cross_entropy(logits, labels, label_smoothing=run.recipe.label_smoothing)
    run.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    run.optimiser.step()
    run.step += 1
    _update_average(run)
    return loss.detach()


@torch.no_grad()
def _update_average(run: Run) -> None:
    """Moving average of parameters and batch-norm statistics, its memory growing with the first steps."""
    decay = min(run.recipe.ema_decay, (1 + run.step) / (10 + run.step))
    ours, theirs = _floating(run.average), _floating(run.model)
    torch._foreach_lerp_(ours, theirs, 1 - decay)


def _floating(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]


# --- Starting, checkpoints ----------------------------------------------------------------------------------


def start(recipe: TrainingRecipe, images: int, num_classes: int, device: torch.device) -> Run:
    """Initialised by the recipe's seed; `tf` padding, so that the exported graph needs no PAD."""
    torch.manual_seed(recipe.seed)
    model = models.build(recipe.model, alpha=recipe.alpha, num_classes=num_classes, padding="tf")
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval()
    optimiser = OPTIMISERS[recipe.optimiser](_parameter_groups(model, recipe))
    return Run(recipe, images, model.train(), average, optimiser)


def _parameter_groups(model: nn.Module, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """Weight decay on dense weights only: none on depthwise kernels (V1 section 3.2), norms and biases."""
    decayed = [weight for weight in model.parameters() if _is_dense(weight)]
    others = [weight for weight in model.parameters() if not _is_dense(weight)]
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _is_dense(weight: Tensor) -> bool:
    """Matrices, and convolutions that mix channels: a depthwise kernel's second dimension is 1."""
    return weight.ndim > 1 and weight.shape[1] > 1


def _checkpoint_tensors(run: Run) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in run.average.state_dict().items()}
    for weight, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{weight}/{name}": value for name, value in state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_checkpoint(run: Run, path: Path) -> None:
    """Write the run to `path` (safetensors), whole or not at all."""
    metadata = {
        "schema": str(CHECKPOINT_SCHEMA),
        "step": str(run.step),
        "asked": json.dumps(_asked(run), sort_keys=True),
    }
    write_state(path, _checkpoint_tensors(run), metadata)


def _asked(run: Run) -> dict[str, Any]:
    """What a run must share with its checkpoint."""
    return asdict(run.recipe) | {"training images": run.images}


def load_checkpoint(run: Run, path: Path) -> None:
    """Bring `run` to the step saved in `path`. AlpharhoError for a damaged file or another recipe's run."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise AlpharhoError(f"{path}: damaged checkpoint ({error}); remove it to start over") from error
    _check_same_run(_asked(run), metadata, path)
    try:
        _restore(run, tensors)
        run.step = int(metadata["step"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise AlpharhoError(
            f"{path}: not a checkpoint of this model ({error}); remove it to start over"
        ) from error


def _check_same_run(asked: dict[str, Any], metadata: dict[str, str], path: Path) -> None:
    try:
        schema, saved = metadata["schema"], json.loads(metadata["asked"])
    except (KeyError, json.JSONDecodeError) as error:
        raise AlpharhoError(f"{path}: not a training checkpoint; remove it to start over") from error
    if schema != str(CHECKPOINT_SCHEMA):
        raise AlpharhoError(
            f"{path}: checkpoint schema {schema}, this version reads {CHECKPOINT_SCHEMA}; remove it"
        )
    for name, value in asked.items():
        if saved.get(name) != value:
            raise AlpharhoError(
                f"{path}: an unfinished run had {name.replace('_', ' ')} {saved.get(name)}, not {value}; "
                "repeat its command to go on, or remove it to start over"
            )


@torch.no_grad()
def _restore(run: Run, tensors: dict[str, Tensor]) -> None:
    """Copy into tensors of the layout that training uses: another layout could round differently."""
    for prefix, module in (("model", run.model), ("average", run.average)):
        module.load_state_dict({name: tensors[f"{prefix}/{name}"] for name in module.state_dict()})
    weights = [weight for group in run.optimiser.param_groups for weight in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, index, name = key.split("/")
            weight = weights[int(index)]
            like_weight = value.shape == weight.shape
            run.optimiser.state[weight][name] = (
                torch.empty_like(weight).copy_(value) if like_weight else value
            )


# --- Evaluation and what is kept ----------------------------------------------------------------------------


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split, resolution: int, device: torch.device) -> tuple[float, float]:
    """Top-1 and top-5 in percent over all of `split`; with five classes or fewer top-5 is 100."""
    hits = torch.zeros(2, dtype=torch.int64)
    for images, labels in split.batches(EVALUATION_BATCH, resolution):
        logits = model(to_tensor(images).to(device)).cpu()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == torch.from_numpy(labels)[:, None]
        hits += torch.stack((ranked[:, 0].sum(), ranked.sum()))
    top1, top5 = (100 * hits / len(split)).tolist()
    return top1, top5


def shipped_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is shipped: weights float16, vectors float32 (float16 loses small variances)."""
    return {
        name: (tensor.half() if tensor.ndim > 1 else tensor).detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def train(
    recipe: TrainingRecipe, dataset: Dataset, *, out: Path, device: str, command: str, quiet: bool
) -> TrainedWeights:
    """Train, or go on with an unfinished run of the same recipe; write `out/<name>.safetensors` and `.md`.

    The checkpoint lies beside them until the run is finished. `command` goes into the card; `quiet` leaves
    out the progress bar.
    """
    if dataset.train is None:
        raise AlpharhoError(
            f"{recipe.dataset} has no training images; train on fashion_mnist_full or on a folder"
        )
    if len(dataset.train) < recipe.batch_size:
        raise AlpharhoError(
            f"{len(dataset.train)} training images are less than one batch of {recipe.batch_size}"
        )
    variant = Variant.of(recipe.model, recipe.alpha, recipe.rho, dataset.base_resolution)
    stem, place = out / f"{variant.name}.{dataset.name}", _device(device)
    checkpoint = stem.with_name(f"{stem.name}.checkpoint.safetensors")
    run = start(recipe, len(dataset.train), len(dataset.classes), place)
    if checkpoint.exists():
        load_checkpoint(run, checkpoint)
    _train_epochs(run, dataset.train, variant.resolution, place, checkpoint, quiet)
    trained = _keep(run, dataset, variant.resolution, place, stem, command)
    checkpoint.unlink(missing_ok=True)
    return trained


def _device(name: str) -> torch.device:
    try:
        device = torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise AlpharhoError(
            f"device {name!r} cannot be used ({reason}); choose {SUPPORTED_DEVICES}"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise AlpharhoError(f"device {name!r} cannot be trained on; choose {SUPPORTED_DEVICES}")
    return device


def _train_epochs(
    run: Run, split: Split, resolution: int, device: torch.device, checkpoint: Path, quiet: bool
) -> None:
    """All remaining steps; a line after every epoch, a checkpoint then and every CHECKPOINT_STEPS."""
    steps_per_epoch = len(split) // run.recipe.batch_size
    total = run.recipe.epochs * steps_per_epoch
    losses, summed = torch.zeros((), device=device), 0
    with tqdm(total=total, initial=run.step, unit="step", disable=quiet) as bar:
        for images, labels in _training_batches(run, split, resolution, steps_per_epoch):
            rate = learning_rate(run.recipe, run.step, steps_per_epoch)
            losses += _train_step(run, images.to(device), labels.to(device), rate)
            summed += 1
            bar.update()
            epoch, position = divmod(run.step, steps_per_epoch)
            if position and run.step % CHECKPOINT_STEPS:
                continue
            _check_finite(losses.item(), math.ceil(run.step / steps_per_epoch))
            save_checkpoint(run, checkpoint)
            if position == 0:
                loss = losses.item() / summed
                bar.write(f"epoch {epoch} of {run.recipe.epochs}: loss {loss:.4f}", file=sys.stderr)
                losses, summed = torch.zeros_like(losses), 0


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise AlpharhoError(
            f"the loss of epoch {epoch} is {loss}; choose a lower learning rate or a longer warm-up"
        )


def _keep(
    run: Run, dataset: Dataset, resolution: int, device: torch.device, stem: Path, command: str
) -> TrainedWeights:
    """Write the averaged weights as they are shipped, evaluate those, and write the card."""
    recipe, weights = run.recipe, stem.with_name(f"{stem.name}.safetensors")
    metadata = {
        "model": recipe.model,
        "alpha": str(recipe.alpha),
        "resolution": str(resolution),
        "num_classes": str(len(dataset.classes)),
        "dataset": dataset.name,
        "padding": "tf",
        "seed": str(recipe.seed),
    }
    write_state(weights, shipped_tensors(run.average), metadata)
    load_weights(run.average, weights)
    top1, top5 = accuracy(run.average, dataset.test, resolution, device)
    trained = TrainedWeights(
        weights=weights,
        card=stem.with_name(f"{stem.name}.md"),
        top1=top1,
        top5=top5,
        samples=len(dataset.test),
    )
    write_text(trained.card, _card(run, dataset, trained, command))
    return trained


def _card(run: Run, dataset: Dataset, trained: TrainedWeights, command: str) -> str:
    assert dataset.train is not None
    count = sum(weight.numel() for weight in run.average.parameters())
    rows = [
        ("command", f"`{command}`"),
        ("seed", str(run.recipe.seed)),
        ("trained on", f"{dataset.name}, {len(dataset.train):,} training images"),
        ("top-1", f"{trained.top1:.2f} % of all {trained.samples:,} test images"),
        ("top-5", f"{trained.top5:.2f} %"),
        ("parameters", f"{count:,}"),
        ("file", f"{trained.weights.stat().st_size:,} bytes, sha256 `{sha256_of(trained.weights)}`"),
        ("date", date.today().isoformat()),
        ("made with", f"PyTorch {torch.__version__}, CPU threads: {torch.get_num_threads()}"),
        ("licence of the data", dataset.licence),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# {trained.weights.name.removesuffix('.safetensors')}\n\n"
        "Exponential moving average of the weights: matrices and kernels in float16, vectors in float32, "
        "measured\nas they are in the file. Written by the training command itself.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


# --- The verb -----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of the recipe, with its default, and where to write."""
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(models.NAMES)}")
    for name, (kind, text) in OPTIONS.items():
        default = next(field.default for field in fields(TrainingRecipe) if field.name == name)
        parser.add_argument(
            _flag(name), type=kind, default=default, metavar="X", help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="weights and card go here (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (%(default)s)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; two runs of 1 outpace one of 2"
    )


OPTIONS: Mapping[str, tuple[type, str]] = {
    "alpha": (float, "width multiplier"),
    "rho": (float, "resolution multiplier"),
    "dataset": (str, "fashion_mnist_full, a folder of IDX files, or a folder of pictures"),
    "epochs": (int, "passes over the training images"),
    "batch_size": (int, "images a step"),
    "optimiser": (str, "sgd or rmsprop"),
    "learning_rate": (float, "peak of the cosine schedule"),
    "warmup_epochs": (float, "epochs of linear warm-up"),
    "weight_decay": (float, "on dense weights only"),
    "label_smoothing": (float, "share of a label given to all classes"),
    "ema_decay": (float, "of the average that is kept"),
    "erasing": (float, "share of images that lose a square"),
    "seed": (int, "of everything random"),
}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def command_of(recipe: TrainingRecipe) -> str:
    """The command that trains `recipe`: model, alpha, epochs and seed, and what differs from the defaults."""
    always = ("alpha", "epochs", "seed")
    words = ["python", "-m", "pipeline", "train", recipe.model]
    for field in fields(TrainingRecipe):
        value = getattr(recipe, field.name)
        if field.name in always or (field.name in OPTIONS and value != field.default):
            words += [_flag(field.name), str(value)]
    return shlex.join(words)


def run(arguments: argparse.Namespace) -> int:
    """The verb `train`. Prints where the weights are and how good they are."""
    recipe = TrainingRecipe(model=arguments.model, **{name: getattr(arguments, name) for name in OPTIONS})
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise UsageError(f"threads is {arguments.threads}; choose at least 1")
        torch.set_num_threads(arguments.threads)
    models.network(recipe.model, recipe.alpha)
    trained = train(
        recipe,
        open_dataset(recipe.dataset),
        out=arguments.out,
        device=arguments.device,
        command=command_of(recipe),
        quiet=not sys.stderr.isatty(),
    )
    print(
        f"{trained.weights}: top-1 {trained.top1:.2f} %, top-5 {trained.top5:.2f} % "
        f"of {trained.samples} test images"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """`python -m pipeline.train MODEL ...`: the verb alone."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.train", description=run.__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except AlpharhoError as error:
        print(f"pipeline.train: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
