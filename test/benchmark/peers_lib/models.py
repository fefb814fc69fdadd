"""Preparing a model: one network, its images, and a file of it for each engine."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (3, 224, 224)
CALIBRATION_IMAGES, TEST_IMAGES = 8, 4
INT8 = "scheme=asymmetric,clip=max,granularity=channel"
IREE_INT8_TIMEOUT_S = 120.0


def calibration_source() -> Any:
    """Images of low and high frequencies, by index the same on every run."""
    from quantune.data.base import ImageSource

    class Images(ImageSource):
        """Noise of two scales."""

        name, shape, classes = "noise", SHAPE, 1000

        def __len__(self) -> int:
            return CALIBRATION_IMAGES + TEST_IMAGES

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            random = np.random.default_rng(index)
            coarse = random.standard_normal((3, 14, 14), np.float32).repeat(16, 1).repeat(16, 2)
            return (coarse + 0.5 * random.standard_normal(SHAPE, np.float32)), 0

    return Images()


def torch_model(name: str) -> Any:
    """The network with random weights, always the same, and calibrated batch norms."""
    import torch

    from quantune.frontend.models import calibrate_batch_norms
    from quantune.torchvision_compat import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}  # its own initialization takes minutes
    model = torchvision().models.get_model(name, weights=None, **options).eval()
    calibrate_batch_norms(model, SHAPE)
    return model


class Stable:
    """Makes the files of one model that the contestants run."""

    def __init__(self, name: str, folder: Path) -> None:
        import torch

        from quantune.api import ModelOptions, import_any
        from quantune.cache import ArtifactCache
        from quantune.compiler.targets import Target
        from quantune.data.splits import Split
        from quantune.quantization.config import QuantConfig
        from quantune.tuning.builder import Builder

        source = calibration_source()
        self.folder, self.network, self.seconds = folder, torch_model(name), dict[str, float]()
        self.images = np.stack([source[index][0] for index in range(len(source))])
        self._torch, self._configs = (
            torch,
            {p: QuantConfig.parse(c) for p, c in (("int8", INT8), ("f32", "precision=f32"))},
        )
        np.save(folder / "images.npy", self.images[CALIBRATION_IMAGES:])
        cache = ArtifactCache()
        imported = import_any(self.network, ModelOptions(shape=SHAPE), cache)
        split = Split(source, tuple(range(CALIBRATION_IMAGES)))
        sizes = (self._configs["int8"].calib,)
        self.builder = Builder(imported, Target("cpu"), calib=split, cache=cache, sizes=sizes)

    def artifact(self, precision: str) -> Any:
        """quantune's artifact."""
        return self.builder.artifact(self._configs[precision])

    def reference(self) -> np.ndarray:
        """The logits of torch for the test images."""
        with self._torch.inference_mode():
            return self.network(self._torch.from_numpy(self.images[CALIBRATION_IMAGES:])).numpy()

    def file(self, engine: str, precision: str) -> Path:
        """The model in the form that the engine reads."""
        if engine == "torch":
            path = self.folder / "model.pt"
            self._torch.save(self.network, path)
            return path
        if engine in ("onnxruntime", "openvino"):
            return self._onnx() if precision == "f32" else self._qdq()
        return self._compiled(engine, precision)

    def _compiled(self, engine: str, precision: str) -> Path:
        from quantune.compiler.iree import compile_module

        config, start = self._configs[precision], time.monotonic()
        if engine == "iree" and precision == "f32":
            module, passes = self.builder.model.bytecode, 0.0
        else:
            self.builder.plan(config)
            start = time.monotonic()
            module = self.builder.lower(config, until="vmfb" if engine == "quantune" else "integer").module
            passes = time.monotonic() - start
        timeout_s = IREE_INT8_TIMEOUT_S if (engine, precision) == ("iree", "int8") else 600.0
        program = compile_module(module, self.builder.target, timeout_s=timeout_s, cache=self.builder.cache)
        self.seconds[f"{engine} {precision}"] = passes + program.seconds
        return program.path

    def _onnx(self) -> Path:
        path = self.folder / "model.onnx"
        if not path.exists():
            example = (self._torch.zeros(1, *SHAPE),)
            names = {"input_names": ["x"], "output_names": ["y"]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter without further packages is an old one
                self._torch.onnx.export(self.network, example, str(path), dynamo=False, opset_version=17, **names)
        return path

    def _qdq(self) -> Path:
        # A peer, installed for this script only.
        from onnxruntime import quantization  # pyright: ignore[reportMissingImports]
        from onnxruntime.quantization.shape_inference import (  # pyright: ignore[reportMissingImports]
            quant_pre_process,
        )

        path = self.folder / "model.qdq.onnx"
        if path.exists():
            return path
        images = iter([{"x": image[None]} for image in self.images[:CALIBRATION_IMAGES]])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(images, None)

        logging.getLogger().setLevel(logging.ERROR)
        # The exporter shares equal biases through Identity nodes; a convolution with such a bias would stay f32.
        cleaned = self.folder / "model.cleaned.onnx"
        quant_pre_process(str(self._onnx()), str(cleaned), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(cleaned), str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return path
