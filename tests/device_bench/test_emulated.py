from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_bench import emulated, emulator_setup
from device_bench.device import BenchSpec, DeviceError, Measurement, ResultClass, connect, default_spec
from device_bench.emulated import EmulatedDevice, runs_wanted
from device_bench.host import HostDevice
from device_bench.measure import judged, measure
from device_bench.statistics import summarize
from pipeline.artifacts import CheckError, UsageError, sha256_of
from tests.device_bench.emulation import need_emulator
from tests.device_bench.tiny_models import conv_model, int8_conv_model, with_float16

MODELS = {
    "float32": conv_model(16, 32),
    "float16": with_float16(conv_model(16, 32)),
    "int8": int8_conv_model(16, 32),
}


@pytest.mark.parametrize(
    ("instructions", "runs"),
    [(1e9, 2), (10_000_000, 2), (9_999_999, 4), (5e6, 4), (1e6, 32), (100, 512), (0, 512), (-5, 512)],
)
def test_the_number_of_invokes_drowns_the_noise(instructions: float, runs: int) -> None:
    assert runs_wanted(instructions) == runs


def test_an_emulated_core_has_one_thread(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 threads asked for"):
        EmulatedDevice(core="cortex-a76").run(tmp_path / "m", BenchSpec(threads=2))


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Measurement]:
    """Counts by precision and core, each taken twice."""
    need_emulator()
    folder, made = tmp_path_factory.mktemp("models"), {}
    for precision, core in (("float32", "a76"), ("float16", "a76"), ("int8", "a76"), ("float16", "a72")):
        model = folder / f"{precision}.tflite"
        model.write_bytes(MODELS[precision])
        name = f"emulated:cortex-{core}"
        with connect(name) as device:
            (made[precision, core],) = measure(device, [model], default_spec(name))
        assert made[precision, core].model.sha256 == sha256_of(model)
    return made


def _instructions(measurement: Measurement) -> float:
    return measurement.counts[0].per_inference


@pytest.mark.emulator
@pytest.mark.slow
def test_counts_repeat_to_half_a_percent(counts: dict[tuple[str, str], Measurement]) -> None:
    for made in counts.values():
        first, second = (count.per_inference for count in made.counts)
        assert made.valid, made.reasons
        assert first == pytest.approx(second, rel=0.005)


@pytest.mark.emulator
@pytest.mark.slow
def test_counts_are_marked_and_never_times(counts: dict[tuple[str, str], Measurement]) -> None:
    made = counts["int8", "a76"]
    assert made.emulated and not made.processes
    assert made.device.kind == "emulated" and made.device.model == "cortex-a76"
    assert made.runtime.name == "ai-edge-litert" and made.runtime.version == "2.1.6"
    with pytest.raises(CheckError, match="instruction counts are not times"):
        summarize(made)


@pytest.mark.emulator
@pytest.mark.slow
def test_kernels_are_those_of_the_core(counts: dict[tuple[str, str], Measurement]) -> None:
    """One instruction does 4 Mult-Adds in float32, 8 in half precision, 16 by dot product."""
    macs = 16 * 16 * 32 * 32 * 9
    float32, float16, int8 = (_instructions(counts[name, "a76"]) for name in ("float32", "float16", "int8"))
    assert macs / 4 < float32 < macs / 2
    assert float16 < 0.7 * float32  # half-precision arithmetic
    assert int8 < 0.5 * float32  # dot products
    # No half-precision arithmetic on this core: the same file runs as float32.
    assert _instructions(counts["float16", "a72"]) == pytest.approx(float32, rel=0.1)


def _emulated_and_host(
    tmp_path: Path, precision: str, images: NDArray[np.generic]
) -> tuple[NDArray[Any], ...]:
    model, inputs = tmp_path / "m.tflite", tmp_path / "in.npy"
    model.write_bytes(MODELS[precision])
    np.save(inputs, images)
    emulated.outputs(model, inputs, tmp_path / "arm.npy", "cortex-a76")
    HostDevice().outputs(model, inputs, tmp_path / "host.npy")
    return np.load(tmp_path / "arm.npy"), np.load(tmp_path / "host.npy")


@pytest.mark.emulator
@pytest.mark.slow
def test_int8_outputs_of_200_images_agree_to_a_step(tmp_path: Path) -> None:
    need_emulator()
    images = np.random.default_rng(0).integers(-128, 128, (200, 16, 16, 32), dtype=np.int8)
    arm, host = _emulated_and_host(tmp_path, "int8", images)
    assert arm.shape == host.shape == (200, 16, 16, 32) and arm.dtype == host.dtype == np.int8
    assert np.abs(arm.astype(int) - host.astype(int)).max() <= 1
    assert len(np.unique(arm)) > 100


@pytest.mark.emulator
@pytest.mark.slow
def test_float16_outputs_differ_from_float32_by_half_precision(tmp_path: Path) -> None:
    need_emulator()
    images = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 32)).astype(np.float32)
    arm, _ = _emulated_and_host(tmp_path, "float16", images)
    _, host = _emulated_and_host(tmp_path, "float32", images)
    # Sums of 288 products, up to 8 in size: each addition rounds by up to half the spacing there, 2**-9.
    one_sigma = 2**-9 / np.sqrt(3) * np.sqrt(288)
    difference = np.abs(arm - host)
    assert 1e-4 < difference.mean() < one_sigma
    assert difference.max() < 6 * one_sigma


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "content", "result"),
    [
        ("tflite-runtime", b"junk" * 9, ResultClass.MODEL_UNSUPPORTED),
        ("ai-edge-litert", conv_model(8, 4, signature=(-1, -1, 8, 4)), ResultClass.MODEL_UNSUPPORTED),
    ],
)
def test_models_the_runtime_refuses(
    tmp_path: Path, runtime: str, content: bytes, result: ResultClass
) -> None:
    need_emulator()
    model = tmp_path / "m.tflite"
    model.write_bytes(content)
    with pytest.raises(DeviceError) as caught, EmulatedDevice(core="cortex-a53") as device:
        device.run(model, BenchSpec(processes=2, timeout_s=600, runtime=runtime))
    assert caught.value.result is result


@pytest.mark.emulator
@pytest.mark.slow
def test_numpy_2_under_tflite_runtime_is_no_runtime(tmp_path: Path) -> None:
    """The import works there, so that only a model that is really loaded shows it."""
    need_emulator()
    real, mixed = emulator_setup.FOLDER, tmp_path / "emulator"
    site = mixed / "site" / "tflite-runtime"
    site.mkdir(parents=True)
    for name in ("root", "libcount.so"):
        (mixed / name).symlink_to(real / name)
    for path in (real / "site" / "ai-edge-litert").glob("numpy*"):
        (site / path.name).symlink_to(path)
    (site / "tflite_runtime").symlink_to(real / "site" / "tflite-runtime" / "tflite_runtime")
    model = tmp_path / "m.tflite"
    model.write_bytes(conv_model(2, 1))
    device = EmulatedDevice(core="cortex-a76", folder=mixed)
    with pytest.raises(DeviceError, match=r"tflite-runtime: (SystemError|ImportError)") as caught:
        device.run(model, replace(BenchSpec(), runtime="tflite-runtime", timeout_s=300))
    assert caught.value.result is ResultClass.NO_RUNTIME


@pytest.mark.emulator
@pytest.mark.slow
def test_a_count_that_fails_later_is_kept_and_marked(
    tmp_path: Path, counts: dict[tuple[str, str], Measurement]
) -> None:
    """Every process has its deadline; one that passes it after the first count leaves that count."""
    model = tmp_path / "m.tflite"
    model.write_bytes(MODELS["int8"])

    class Tired(EmulatedDevice):
        def _pair(self, model: Path, spec: BenchSpec, high_runs: int) -> object:  # type: ignore[override]  # never returns
            return super()._pair(model, replace(spec, timeout_s=0.001), high_runs)

    with pytest.raises(DeviceError, match=r"timeout: .*still running after 0\.001 s") as caught:
        Tired(core="cortex-a76").run(model, BenchSpec(processes=2, timeout_s=600))
    (partial,) = caught.value.partials
    assert partial.result is ResultClass.TIMEOUT and len(partial.counts) == 1
    assert _instructions(partial) == pytest.approx(_instructions(counts["int8", "a76"]), rel=0.005)
    assert judged(partial).result is ResultClass.INVALID
