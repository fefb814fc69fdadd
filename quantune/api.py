"""The Python entry points: ``compile`` searches, ``quantize`` builds one configuration."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

from quantune.cache import ArtifactCache, content_key
from quantune.compiler.pipelines import Debugging
from quantune.compiler.targets import Target, parse
from quantune.data.choice import Images, calibration_images, search_images
from quantune.data.splits import Split
from quantune.errors import UsageError
from quantune.frontend.files import SUFFIXES, import_file
from quantune.frontend.imported import ImportedModel, read_model
from quantune.metrics import DEFAULT
from quantune.metrics import parse as parse_metric
from quantune.process import memory, places
from quantune.quantization.config import QuantConfig
from quantune.quantization.predictions import Proxies
from quantune.quantization.space import CALIBRATION_SIZES
from quantune.runtime.artifact import Artifact
from quantune.search.progress import Budget
from quantune.search.scores import Objective
from quantune.tuning import exports
from quantune.tuning.bits_wanted import BitsWanted
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.local import TARGET_DB, LocalChoice
from quantune.tuning.measuring import Machines, device_target
from quantune.tuning.notices import Notices
from quantune.tuning.outcome import Result, finish
from quantune.tuning.request import ModelOptions, Origin, Progress
from quantune.tuning.searching import Search

if TYPE_CHECKING:
    import torch

    from quantune.zoo.recipes import Recipe

    ModelLike = str | Path | ImportedModel | torch.nn.Module | torch.export.ExportedProgram


def compile(
    model: ModelLike,
    *,
    calib: Images,
    eval: Images,
    target: str | Target = "cpu",
    objective: str = "accuracy",
    metric: str = DEFAULT,
    max_drop: float | EllipsisType | None = ...,
    max_relative_drop: float | None = None,
    max_trials: int | None = None,
    time_budget_s: float | None = None,
    out: Path | str = "quantune-out",
    space: str | None = None,
    sampler: str = "xgboost",
    seed: int = 0,
    threads: int = 1,
    options: ModelOptions | None = None,
    storage: str | None = None,
    retry_failed: bool = False,
    transfer: bool = True,
    weight_bits: int | None = None,
    size_budget: str | int | None = None,
    smallest_within: float | None = None,
    score: str | None = None,
    propose: str | None = None,
    walk: str | None = None,
    formats: str | None = None,
    early_stop: bool = True,
    memory_limit: str | int | None = None,
    device: str | None = None,
    evaluate_on: str | None = None,
    export: str | None = None,
    cache: ArtifactCache | None = None,
    debugging: Debugging | None = None,
    progress: Progress | None = None,
) -> Result:
    """Search for the best quantized artifact of ``model`` within an accuracy budget; results are written to ``out``.

    model: a reference (torchvision:NAME, PKG.MOD:FACTORY, FILE.pt2, FILE.mlir), a torch module or an exported program.
    calib, eval: references (builtin:shapes, imagefolder:DIR, npz:FILE) or sources; they may not share an image.
    space: paper, or wide, which has all clip rules, weight ranges and bias correction too (docs/search.md); by default
    paper, and wide with smallest_within.
    transfer: whether studies of other models guide the search for accuracy.
    metric: what accuracy means (docs/metrics.md): top-1, mIoU, …, distances to f32 that need no labels, or
    PKG.MOD:FUNCTION. max_drop: largest loss of it against f32 in its unit, of shares as a fraction; by default 0.01 of
    shares, no bound of others. max_relative_drop: instead, as a fraction of what f32 has. Without max_trials and
    time_budget_s the whole space is measured. storage: a database whose trials workers share (docs/workers.md).
    retry_failed: measure again what failed.
    weight_bits: of every layer (2 to 8), or size_budget: of all weights, packed ("1.2MB", "0.5x", bytes), or
    smallest_within: the loss that the smallest artifact may have (in place of objective and max_drop): score, propose
    and walk say how layers get bits of their own then, and formats ("w2h,w3k") what they may have beside whole widths
    (docs/bits.md). early_stop: let trials end that fall behind the best for sure (quantune.search.stopping); the answer
    is always measured on all images. memory_limit: of each compiler and worker ("2GB", bytes, "none"; default: from the
    machine's memory). device: tcp://HOST:PORT of a device server, which is compiled for and measures the latency;
    evaluate_on: where the accuracy is counted (quantune.tuning.measuring). export: a format of others to write the
    answer in too, such as qdq-onnx (docs/formats.md). The same call continues an interrupted search. Raises
    QuantuneError with one line for the user.
    """
    progress = progress or Progress()
    model = str(model) if isinstance(model, Path) else model
    if smallest_within is not None:
        objective, max_drop = "size", smallest_within
    goal = _goal(objective, metric, max_drop, max_relative_drop)
    search = Search(  # what can be refused at once is refused before the model is imported
        objective=goal, budget=Budget(max_trials, time_budget_s), space=space, sampler=sampler, seed=seed,
        bits=BitsWanted(weight_bits, size_budget, smallest_within, score, propose, walk, formats),
        storage=storage, retry_failed=retry_failed, transfer=transfer, early_stop=early_stop,
    )  # fmt: skip
    machines = Machines(
        parse(target) if isinstance(target, str) else target, device, evaluate_on, threads, memory_limit
    )
    if export is not None:
        exports.check(export)
    folder = places.folder(out, "output folder")
    cache, peaks, notices = cache or ArtifactCache(), memory.Peaks(), Notices()
    with contextlib.ExitStack() as held:
        held.enter_context(notices.listening())
        place = machines.reach(cache)
        held.callback(place.close)
        calib_split, eval_split = search_images(calib, eval)
        progress.on_stage("importing the model")
        peaks.begin("import")
        imported = import_any(model, _for_data(model, options, eval_split), cache, progress)
        imported.check_searchable()
        builder = held.enter_context(Builder(
            imported, place.target, calib=calib_split, cache=cache, on_calibration=progress.on_calibration,
            debugging=debugging or Debugging(reproducer_dir=folder / "failures"),
            memory_limit=memory_limit, peaks=peaks, origin=Origin.of(model, calib, eval, options),
        ))  # fmt: skip
        if export is not None:
            exports.check_model(export, builder)
        evaluator = held.enter_context(Evaluator(builder, eval_split, threads=threads, place=place, metric=goal.judged))
        builder.prepare(search.baselines, calibration=True)
        progress.on_stage(f"reading {len(eval_split)} evaluation images")
        evaluator.take_up()
        tuning, notes = search.run(evaluator, folder, progress, peaks)
        if tuning.interrupted:
            builder.close(stop=True)
        return finish(tuning, builder, evaluator, folder, notices, progress.on_stage, notes=notes, export=export)


def _goal(objective: str, metric: str, drop: float | EllipsisType | None, relative: float | None) -> Objective:
    """What a search is after, from the words of a request."""
    judged = parse_metric(metric)
    if relative is not None:
        if drop is not ... and drop is not None:
            raise UsageError("max_drop and max_relative_drop: give one of them")
        return Objective(objective, relative, judged, relative=True)
    if isinstance(drop, EllipsisType):
        drop = 0.01 if judged.fraction else None
    return Objective(objective, drop, judged)


def quantize(
    model: ModelLike,
    config: QuantConfig | str,
    *,
    calib: Images | None = None,
    eval: Images | None = None,
    target: str | Target = "cpu",
    device: str | None = None,
    options: ModelOptions | None = None,
    memory_limit: str | int | None = None,
    cache: ArtifactCache | None = None,
    debugging: Debugging | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Build the artifact of one configuration, without a search.

    ``calib`` may be left out for float configurations; where it is given, its images' shape is the model's input. The
    images are chosen as in a search; ``eval`` matters where both name one set, which a search divides between them.
    device: tcp://HOST:PORT of a device server, whose processor is compiled for; it must be able to run the result.
    """
    config = QuantConfig.parse(config) if isinstance(config, str) else config
    if not isinstance(config, QuantConfig):
        raise UsageError(f"configuration {config!r}: expected a QuantConfig or a line such as clip=kl,precision=int8")
    builder = make_builder(
        model,
        calib=calib,
        eval=eval,
        target=target,
        device=device,
        sizes=(config.calib,),
        options=options,
        memory_limit=memory_limit,
        cache=cache,
        debugging=debugging,
        progress=progress,
    )
    if progress is not None and config.refinement:
        progress.on_stage("correcting biases" if config.rounding == "nearest" else "choosing how weights are rounded")
    return builder.artifact(config)


def quantize_local(
    model: ModelLike,
    *,
    calib: Images,
    config: QuantConfig | str | None = None,
    target_db: float | None = None,
    max_slowdown: float | None = None,
    target: str | Target = "cpu",
    options: ModelOptions | None = None,
    memory_limit: str | int | None = None,
    cache: ArtifactCache | None = None,
    progress: Progress | None = None,
) -> tuple[Artifact, str]:
    """Build an artifact whose worst layers stay in f32, from two passes over ``calib``: no search, no labels.

    config: the other settings; by default those predicted to be best. target_db: the signal-to-noise ratio wanted of
    the result (30). max_slowdown: how many times longer it may take than without f32 layers, timed. Returns the
    artifact and what was decided, in words.
    """
    asked = LocalChoice(TARGET_DB if target_db is None else target_db, max_slowdown)
    progress = progress or Progress()
    base = QuantConfig.parse(config) if isinstance(config, str) else config
    builder = make_builder(
        model, calib=calib, target=target, sizes=CALIBRATION_SIZES if base is None else (base.calib,), options=options,
        memory_limit=memory_limit, cache=cache, progress=progress,
    )  # fmt: skip
    progress.on_stage("comparing the layers' outputs with f32")
    if base is None:
        base = Proxies(builder.model.network, builder.plans.scales, builder.calibration.statistics).best()
    chosen, text = asked.configuration(builder, base)
    progress.on_stage("building the artifact")
    return builder.artifact(chosen), text


def make_builder(
    model: ModelLike,
    *,
    calib: Images | None,
    target: str | Target,
    sizes: tuple[int, ...],
    eval: Images | None = None,
    device: str | None = None,
    options: ModelOptions | None = None,
    memory_limit: str | int | None = None,
    cache: ArtifactCache | None = None,
    debugging: Debugging | None = None,
    progress: Progress | None = None,
) -> Builder:
    """Import a model and hold it ready to be built for a target; what the options mean, `quantize` says."""
    progress = progress or Progress()
    model = str(model) if isinstance(model, Path) else model
    cache = cache or ArtifactCache()
    memory.check(memory_limit)
    target = parse(target) if isinstance(target, str) else target
    if device is not None:
        target = device_target(target, device, cache)
    split = None if calib is None else calibration_images(calib, eval)
    progress.on_stage("importing the model")
    imported = import_any(model, _for_data(model, options, split), cache, progress)
    return Builder(
        imported,
        target,
        calib=split,
        cache=cache,
        sizes=sizes,
        memory_limit=memory_limit,
        debugging=debugging,
        on_calibration=progress.on_calibration,
        on_refining=progress.on_refining,
        origin=Origin.of(model, calib, eval, options),
    )


def import_any(
    model: ModelLike, options: ModelOptions, cache: ArtifactCache, progress: Progress | None = None
) -> ImportedModel:
    """Import a model given in any form; torch is loaded only where it is needed.

    A built-in network whose weights do not ship is trained here at its first use and kept beside the cache.
    """
    if isinstance(model, ImportedModel):
        return model
    if isinstance(model, str) and model.endswith(SUFFIXES) and options == ModelOptions():
        return import_file(model)
    from quantune.frontend import importer, models
    from quantune.zoo import store

    on_training = (progress or Progress()).on_training

    def weights_of(recipe: Recipe) -> Path:
        return store.weights(recipe, cache.root, on_training)

    if isinstance(model, str):
        request = models.ModelRequest(model, options.weights, options.shape, options.batch, options.classes)
        key = models.request_key(request, weights_of)
        name = model.partition(":")[2]
        known = cache.read(content_key(key), ".mlirbc", lambda data: read_model(data, name)) if key else None
        if known is not None:
            return known
        imported = models.load_model(request, weights_of)
        if key:
            cache.put(content_key(key), imported.bytecode, ".mlirbc")
        return imported
    import torch

    if not isinstance(model, torch.export.ExportedProgram | torch.nn.Module):
        raise UsageError(f"model: got {type(model).__name__}, expected a reference, a torch module or exported program")
    fixed = (
        ("weights", "classes", "batch") if isinstance(model, torch.export.ExportedProgram) else ("weights", "classes")
    )
    for name in fixed:
        if getattr(options, name) != getattr(ModelOptions, name):
            raise UsageError(f"{name} does not apply to a model of type {type(model).__name__}, which fixes it")
    if isinstance(model, torch.export.ExportedProgram):
        return importer.import_program(model, "model")
    if options.shape is None:
        raise UsageError("a torch module needs the image shape: options=ModelOptions(shape=(3, 224, 224))")
    return importer.import_module(model, models.example(options.batch, options.shape), type(model).__name__)


def _for_data(model: ModelLike, options: ModelOptions | None, split: Split | None) -> ModelOptions:
    """Take the image shape from the data where the model leaves it open."""
    options = options or ModelOptions()
    fixed = isinstance(model, str) and (model.startswith("builtin:") or model.endswith(SUFFIXES))
    if split is None or options.shape is not None or fixed:
        return options
    return ModelOptions(options.weights, split.source.shape, options.batch, options.classes)
