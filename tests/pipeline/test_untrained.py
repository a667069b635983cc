from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import models
from device_bench.records import write_json
from export.check import audit_delegate, check_delegate
from export.read_tflite import read_tflite
from pipeline import bench, job, manifest, untrained
from pipeline.artifacts import AlpharhoError
from pipeline.untrained import NAMES, base_resolution, file_of
from pipeline.variant import PRECISIONS, Variant


def test_networks_with_a_head_are_named_beside_all_others() -> None:
    assert set(models.NAMES) < set(NAMES) and "v2_ssdlite" in NAMES
    assert [base_resolution(name) for name in ("v2", "v1_ssd", "v2_ssdlite", "v1_embedding")] == [
        224,
        300,
        320,
        160,
    ]


def test_a_variant_with_a_head_is_held_to_its_backbones_limits() -> None:
    assert Variant.of("v2_ssdlite", 0.5, 0.5, base_resolution("v2_ssdlite")).name == "v2_ssdlite_0.50_160"
    with pytest.raises(AlpharhoError, match="too small"):
        Variant.of("v2_ssdlite", 0.5, 0.05, 320)
    with pytest.raises(AlpharhoError, match="unknown model 'v2_yolo'"):
        Variant.of("v2_yolo", 0.5, 1.0, 320)


def test_all_outputs_of_a_head_are_in_every_file(tmp_path: Path) -> None:
    variant = Variant("v2_ssdlite", 0.35, 64)
    for precision in PRECISIONS:
        path = file_of(variant, precision, tmp_path)
        check_delegate(audit_delegate(path), path)
        graph = read_tflite(path)
        shapes = sorted(graph.tensors[name].shape[1:] for name in graph.outputs)
        assert [shape[-1] for shape in shapes] == [4, 81] and shapes[0][0] == shapes[1][0]


def test_a_file_that_other_code_made_is_made_anew(tmp_path: Path) -> None:
    variant = Variant("v1", 0.25, 32)
    made = file_of(variant, "float32", tmp_path)
    content = made.read_bytes()
    made.write_bytes(b"kept")
    assert file_of(variant, "float32", tmp_path).read_bytes() == b"kept"
    write_json(made.parent / untrained.RECORD, {"code": "of another day"})
    assert file_of(variant, "float32", tmp_path).read_bytes() == content


def test_a_file_that_export_made_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "v1_0.25_32"
    folder.mkdir()
    for name in ("float32.tflite", manifest.FILE_NAME):
        (folder / name).write_bytes(b"exported")
    assert file_of(Variant("v1", 0.25, 32), "float32", tmp_path).read_bytes() == b"exported"


def test_export_of_an_untrained_head_says_what_to_do() -> None:
    with pytest.raises(AlpharhoError, match=r"pipeline bench v1_rpn.*pipeline convert"):
        job.prepare(job.Request(model="v1_rpn"))


def test_bench_lists_networks_with_a_head_for_an_unknown_target() -> None:
    with pytest.raises(AlpharhoError, match="v3_large_halved_ssdlite"):
        bench.files_of(argparse.Namespace(targets=["v2_yolo"], device="host"))
