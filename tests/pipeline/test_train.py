"""Training: schedule, augmentation, exact resumption after a kill, what is kept, and the shipped weights."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.weights import load_weights, read_metadata, read_state, write_state
from pipeline import data, train
from pipeline.artifacts import AlpharhoError, UsageError, sha256_of
from pipeline.train import TrainingRecipe

CPU = torch.device("cpu")
SHIPPED = Path(models.__file__).parent / "weights"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IDX files: the sample's 500 calibration images to train on, 300 of its test images."""
    folder = tmp_path_factory.mktemp("small")
    for source, prefix, count in (("calibration", "train", 500), ("t10k", "t10k", 300)):
        split = data.read_idx_split(data.SAMPLE_DIR, source, 10)
        data.write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", split.images[:count])
        data.write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", split.labels[:count].astype(np.uint8))
    return folder


def small_recipe(small_set: Path, **changes: object) -> TrainingRecipe:
    """Ten steps an epoch at resolution 32."""
    recipe = TrainingRecipe(
        model="v1", alpha=0.25, rho=4 / 7, dataset=str(small_set), epochs=2, batch_size=50, warmup_epochs=1.0
    )
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]  # the tests name real fields


def run_train(recipe: TrainingRecipe, out: Path) -> train.TrainedWeights:
    dataset = data.open_dataset(recipe.dataset)
    return train.train(recipe, dataset, out=out, device="cpu", command=train.command_of(recipe), quiet=True)


# --- Recipe and schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs is 0; choose a value from 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"optimiser": "adam"}, "unknown optimiser 'adam'; choose one of sgd, rmsprop"),
    ],
)
def test_a_recipe_out_of_range_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainingRecipe(model="v1", **changes)  # type: ignore[arg-type]  # on purpose


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine_to_zero() -> None:
    recipe = TrainingRecipe(model="v1", epochs=10, warmup_epochs=2, learning_rate=0.4)
    rates = [train.learning_rate(recipe, step, steps_per_epoch=50) for step in range(501)]
    np.testing.assert_allclose(rates[:100], 0.4 * np.arange(1, 101) / 100)
    np.testing.assert_allclose(rates[100:], 0.2 * (1 + np.cos(np.pi * np.arange(401) / 400)), atol=1e-12)


@given(
    alpha=st.floats(0.01, 2),
    epochs=st.integers(1, 1000),
    seed=st.integers(0, 2**31 - 1),
    optimiser=st.sampled_from(sorted(train.OPTIMISERS)),
    weight_decay=st.floats(0, 1),
    dataset=st.sampled_from(["fashion_mnist_full", "my pictures/of 'cats'"]),
)
@settings(deadline=None, max_examples=30)
def test_the_command_of_a_recipe_gives_that_recipe(**values: object) -> None:
    recipe = TrainingRecipe(model="v2", **values)  # type: ignore[arg-type]  # hypothesis draws by name
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    words = shlex.split(train.command_of(recipe))
    assert words[:4] == ["python", "-m", "pipeline", "train"]
    parsed = parser.parse_args(words[4:])
    assert (
        TrainingRecipe(model=parsed.model, **{name: getattr(parsed, name) for name in train.OPTIONS})
        == recipe
    )


def test_every_field_of_a_recipe_is_an_option() -> None:
    assert {field.name for field in dataclasses.fields(TrainingRecipe)} == {"model", *train.OPTIONS}


# --- Augmentation -------------------------------------------------------------------------------------------


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    padded = np.pad(image, ((8, 8), (8, 8), (0, 0)))
    side = len(image)
    return padded[8 - dy : 8 - dy + side, 8 - dx : 8 - dx + side]


def test_augmented_images_are_mirrored_and_shifted_by_at_most_a_fourteenth() -> None:
    image = np.random.default_rng(0).integers(1, 256, (28, 28, 3), dtype=np.uint8)
    allowed = {
        shifted(side, dy, dx).tobytes(): (mirrored, dy, dx)
        for mirrored, side in enumerate((image, image[:, ::-1]))
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    images = np.repeat(image[None], 2000, axis=0)
    seen = {allowed[made.tobytes()] for made in train.augment(images, np.random.default_rng(1), erasing=0)}
    assert seen == set(allowed.values())


def test_erasing_blacks_out_a_square_of_two_sevenths() -> None:
    images = np.full((200, 56, 56, 3), 9, np.uint8)
    made = train.augment(images, np.random.default_rng(2), erasing=1)
    black = (made[:, 4:-4, 4:-4] == 0).all(axis=3)  # a shift reaches 4 pixels in from the border
    assert (black.sum(axis=(1, 2)) >= 12 * 12).all()
    assert (black.sum(axis=(1, 2)) <= 16 * 16).all()
    assert (images == 9).all()


def test_augmentation_repeats_by_generator() -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    first, again, other = (train.augment(images, np.random.default_rng(seed), 0.5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# --- Optimisation -------------------------------------------------------------------------------------------


def test_weight_decay_spares_depthwise_kernels_norms_and_biases() -> None:
    run = train.start(TrainingRecipe(model="v3_small"), 1, 10, CPU)
    names = {id(weight): name for name, weight in run.model.named_parameters()}
    decayed, spared = run.optimiser.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (5e-4, 0.0)
    decays = {names[id(weight)] for weight in decayed["params"]}
    assert decays == {
        name
        for name in names.values()
        if name.endswith("weight") and ".norm." not in name and ".depthwise." not in name
    }
    assert decays | {names[id(weight)] for weight in spared["params"]} == set(names.values())


def test_the_average_follows_weights_and_batch_norm_statistics(small_set: Path) -> None:
    run = train.start(small_recipe(small_set, ema_decay=0.5), 500, 10, CPU)
    expected = {name: value.clone() for name, value in run.average.state_dict().items()}
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    for step in range(1, 13):
        train._train_step(run, images, labels, 0.05)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in run.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in run.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimiser", sorted(train.OPTIMISERS))
def test_a_checkpoint_restores_every_bit_of_a_run(small_set: Path, tmp_path: Path, optimiser: str) -> None:
    recipe = small_recipe(small_set, optimiser=optimiser, model="v3_small", alpha=0.35)
    images, labels = (
        train.to_tensor(data.read_idx_split(small_set, "t10k", 10).take(range(16), 32)[0]),
        torch.arange(16) % 10,
    )
    straight, resumed = (train.start(recipe, 500, 10, CPU) for _ in range(2))
    for step in range(6):
        if step == 3:
            train.save_checkpoint(straight, tmp_path / "checkpoint.safetensors")
            train.load_checkpoint(resumed, tmp_path / "checkpoint.safetensors")
        train._train_step(straight, images, labels, 0.01)
        if step >= 3:
            train._train_step(resumed, images, labels, 0.01)
    ours, theirs = train._checkpoint_tensors(straight), train._checkpoint_tensors(resumed)
    assert straight.step == resumed.step == 6
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- Whole runs ---------------------------------------------------------------------------------------------


def test_training_learns_and_keeps_what_it_measured(small_set: Path, tmp_path: Path) -> None:
    recipe = small_recipe(small_set, epochs=12, erasing=0.0, ema_decay=0.9)
    trained = run_train(recipe, tmp_path)
    assert trained.top1 > 60
    assert trained.top5 > 95
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "v1_0.25_32.fashion_mnist.md",
        "v1_0.25_32.fashion_mnist.safetensors",
    ]
    model = models.build("v1", alpha=0.25, num_classes=10).eval()
    load_weights(model, trained.weights)
    test = data.open_dataset(str(small_set)).test
    assert train.accuracy(model, test, 32, CPU) == (trained.top1, trained.top5)


def test_the_card_and_the_file_say_what_they_are(small_set: Path, tmp_path: Path) -> None:
    recipe = small_recipe(small_set, epochs=1, seed=7)
    trained = run_train(recipe, tmp_path)
    card = trained.card.read_text()
    assert f"`{train.command_of(recipe)}`" in card
    assert "--seed 7" in card
    assert f"{trained.top1:.2f} % of all 300 test images" in card
    assert sha256_of(trained.weights) in card
    assert read_metadata(trained.weights) == {
        "model": "v1",
        "alpha": "0.25",
        "resolution": "32",
        "num_classes": "10",
        "dataset": "fashion_mnist",
        "padding": "tf",
        "seed": "7",
    }
    halves = {name: value.dtype for name, value in read_state(trained.weights).items()}
    assert halves["features.0.conv.weight"] == halves["classifier.1.weight"] == torch.float16
    assert halves["features.0.norm.running_var"] == torch.float32


def test_the_seed_decides_every_byte(small_set: Path, tmp_path: Path) -> None:
    first, again, other = (
        run_train(small_recipe(small_set, epochs=1, seed=seed), tmp_path / name).weights.read_bytes()
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )
    assert first == again
    assert first != other


def command_line(recipe: TrainingRecipe, out: Path) -> list[str]:
    words = shlex.split(train.command_of(recipe))[4:]
    return [sys.executable, "-m", "pipeline.train", *words, "--out", str(out), "--threads", "1"]


def kill_after_epoch(command: list[str], epoch: int) -> None:
    """SIGKILL in the epoch after `epoch`, so that steps are lost which must be done again."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=data.REPOSITORY) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"epoch {epoch} of"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    recipe = small_recipe(small_set, model="v3_small", alpha=0.35, epochs=4, seed=3)
    straight = run_train(recipe, tmp_path / "straight")
    killed, command = tmp_path / "killed", command_line(recipe, tmp_path / "killed")
    kill_after_epoch(command, 2)
    assert [path.name for path in killed.glob("[!.]*")] == [
        "v3_small_0.35_32.fashion_mnist.checkpoint.safetensors"
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=data.REPOSITORY)
    assert re.findall(r"epoch \d", ended.stderr) == ["epoch 3", "epoch 4"]
    assert (killed / straight.weights.name).read_bytes() == straight.weights.read_bytes()
    assert (killed / straight.card.name).read_text() == straight.card.read_text()
    assert not list(killed.glob("*checkpoint*"))


# --- What is said when it cannot be -------------------------------------------------------------------------

NAME = "v1_0.25_32.fashion_mnist.checkpoint.safetensors"


@pytest.fixture
def unfinished(small_set: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoint of a run that was stopped after three steps."""
    run = train.start(small_recipe(small_set), 500, 10, CPU)
    for _ in range(3):
        train._train_step(run, torch.randn(4, 3, 32, 32), torch.arange(4), 0.01)
    train.save_checkpoint(run, tmp_path / NAME)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 9}, "an unfinished run had epochs 2, not 9; repeat its command"),
        ({"learning_rate": 0.3}, "an unfinished run had learning rate 0.1, not 0.3"),
        ({"optimiser": "rmsprop"}, "an unfinished run had optimiser sgd, not rmsprop"),
    ],
)
def test_another_recipe_cannot_go_on(
    small_set: Path, unfinished: Path, changes: dict[str, object], said: str
) -> None:
    before = (unfinished / NAME).read_bytes()
    with pytest.raises(AlpharhoError, match=said):
        run_train(small_recipe(small_set, **changes), unfinished)
    assert (unfinished / NAME).read_bytes() == before


def test_other_images_cannot_go_on(small_set: Path, unfinished: Path) -> None:
    dataset = data.open_dataset(str(small_set))
    fewer = dataclasses.replace(dataset, train=dataset.test)
    with pytest.raises(AlpharhoError, match="an unfinished run had training images 500, not 300"):
        train.train(small_recipe(small_set), fewer, out=unfinished, device="cpu", command="", quiet=True)


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_a_damaged_checkpoint_is_named(small_set: Path, unfinished: Path, kept: int) -> None:
    path = unfinished / NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        AlpharhoError, match=rf"{re.escape(NAME)}: damaged checkpoint .*remove it to start over"
    ):
        run_train(small_recipe(small_set), unfinished)


def test_a_file_that_is_no_checkpoint_is_named(small_set: Path, unfinished: Path) -> None:
    write_state(unfinished / NAME, {"x": torch.zeros(3)}, {})
    with pytest.raises(AlpharhoError, match=r"not a training checkpoint; remove it"):
        run_train(small_recipe(small_set), unfinished)


def test_a_checkpoint_with_a_tensor_missing_is_named(small_set: Path, unfinished: Path) -> None:
    tensors, metadata = read_state(unfinished / NAME), read_metadata(unfinished / NAME)
    del tensors["average/features.0.conv.weight"]
    write_state(unfinished / NAME, tensors, metadata)
    with pytest.raises(AlpharhoError, match=r"not a checkpoint of this model .*features\.0\.conv\.weight"):
        run_train(small_recipe(small_set), unfinished)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "fashion_mnist"}, "fashion_mnist has no training images; train on fashion_mnist_full"),
        ({"batch_size": 501}, "500 training images are less than one batch of 501"),
        ({"rho": 0.5}, "resolution 28 is too small for v1"),
        ({"model": "v9"}, "unknown model 'v9'"),
        ({"alpha": 0.0}, r"alpha is 0\.0"),
    ],
)
def test_a_run_that_cannot_start_says_why(
    small_set: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(AlpharhoError, match=said):
        run_train(small_recipe(small_set, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_diverges_ends_the_run(small_set: Path, tmp_path: Path) -> None:
    recipe = small_recipe(small_set, learning_rate=100.0, weight_decay=1.0, epochs=3)
    with pytest.raises(AlpharhoError, match=r"the loss of epoch \d is nan; choose a lower learning rate"):
        run_train(recipe, tmp_path)
    assert not (tmp_path / "v1_0.25_32.fashion_mnist.safetensors").exists()


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named(small_set: Path, tmp_path: Path, device: str) -> None:
    dataset = data.open_dataset(str(small_set))
    with pytest.raises(AlpharhoError, match=f"device '{device}' cannot be "):
        train.train(small_recipe(small_set), dataset, out=tmp_path, device=device, command="", quiet=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["v1", "--epochs", "0"], 2, "epochs is 0"),
        (["v1", "--threads", "0"], 2, "threads is 0"),
        (["v1", "--dataset", "nowhere"], 1, "unknown data set 'nowhere'"),
        (["v1", "--dataset", "fashion_mnist"], 1, "has no training images"),
        (["v7"], 1, "unknown model 'v7'"),
    ],
)
def test_the_verb_ends_with_one_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


# --- Shipped weights ----------------------------------------------------------------------------------------

# fmt: off
TARGETS = (  # top-1 in percent on the full test set
    ("v3_small", 1.00, 92.5),
    ("v1",       0.25, 91.5),
    ("v2",       0.35, 91.5),
)
# fmt: on


@pytest.mark.parametrize(("name", "alpha", "target"), TARGETS)
def test_shipped_weights_are_as_good_as_their_card_says(name: str, alpha: float, target: float) -> None:
    path = SHIPPED / f"{name}_{alpha:.2f}_56.fashion_mnist.safetensors"
    card = path.with_suffix(".md").read_text()
    stated = float(re.search(r"top-1 \| ([\d.]+) % of all 10,000 test images", card)[1])  # type: ignore[index]
    assert stated >= target
    assert sha256_of(path) in card
    assert path.stat().st_size < 4_000_000
    assert f"pipeline train {name} --alpha {alpha}" in card
    model = models.build(name, alpha=alpha, num_classes=10).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_weights(model, path)
    top1, _ = train.accuracy(model, data.open_dataset("fashion_mnist").test, 56, CPU)
    assert top1 == pytest.approx(stated, abs=2.0)  # 2,000 of the 10,000: three standard errors


def test_every_shipped_file_has_a_card_and_every_card_a_file() -> None:
    weights = {path.stem for path in SHIPPED.glob("*.safetensors")}
    assert weights == {path.stem for path in SHIPPED.glob("*.md")} - {"README"}
    for stem in weights:
        described = read_metadata(SHIPPED / f"{stem}.safetensors")
        assert stem == (
            f"{described['model']}_{float(described['alpha']):.2f}_{described['resolution']}.{described['dataset']}"
        )
