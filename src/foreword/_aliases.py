"""Old paths of modules, and old names in them: `foreword.attention.Attending` works, and says the new name.

One finder on `sys.meta_path` serves all paths, in front of Python's own: those would find the files of a
moved package under its old name, and load it a second time. Both paths name one module. It knows its old
names from when it is first imported under an old path, so that new code can't come to use them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import CodeType, FrameType, ModuleType
from typing import Any

from foreword.errors import ForewordDeprecation

MOVED = {
    "baselines": "research.baselines",
    "bench": "research.bench",
    "experiments": "research.experiments",
    "attention": "base.attention",
    "baselines.adapter": "research.baselines.bottleneck_adapter",
    "baselines.harness": "research.baselines.fit",
    "baselines.method": "research.baselines.registry",
    "baselines.peft_methods": "research.baselines.peft",
    "baselines.prefixes": "research.baselines.prefix",
    "baselines.prompting": "research.baselines.prompting",
    "baselines.trainee": "research.baselines.protocol",
    "baselines.variants": "research.baselines.prefix",
    "baselines.weights": "research.baselines.fine_tuning",
    "batch": "base.batch",
    "bench.curves": "research.bench.scaling",
    "bench.data": "research.bench.workload",
    "bench.flops": "research.bench.roofline",
    "bench.generation": "research.bench.generation",
    "bench.machine": "research.bench.roofline",
    "bench.memory": "research.bench.memory",
    "bench.peak_memory": "research.bench.memory",
    "bench.peft_peer": "research.bench.peft",
    "bench.picture": "research.bench.report",
    "bench.processes": "research.bench.memory",
    "bench.quality": "research.bench.time_to_quality",
    "bench.report": "research.bench.report",
    "bench.rounds": "research.bench.timing",
    "bench.start": "research.bench.startup",
    "bench.step": "research.bench.train_step",
    "bench.workload": "research.bench.workload",
    "cache": "base.kv_cache",
    "causal": "base.attention",
    "checkpointing": "base.gradient_checkpointing",
    "compilation": "training.embedding",
    "decoding": "sampling",
    "evaluation.losses": "evaluation.evaluate",
    "evaluation.metrics.columns": "evaluation.metrics.bleu_chrf_rouge",
    "evaluation.metrics.java": "evaluation.metrics.meteor",
    "evaluation.metrics.nist": "evaluation.metrics.e2e",
    "evaluation.metrics.plain": "evaluation.metrics.bleu_chrf_rouge",
    "evaluation.metrics.sets": "evaluation.metrics.registry",
    "evaluation.metrics.summaries": "evaluation.metrics.bleu_chrf_rouge",
    "evaluation.metrics.triples": "evaluation.metrics.webnlg",
    "evaluation.task_hub": "evaluation.task_data",
    "examples.digest": "examples.example",
    "examples.entry": "examples.example",
    "examples.fields": "examples.records",
    "examples.grouping": "examples.example",
    "examples.lines": "examples.records",
    "examples.reading": "examples.readers",
    "examples.table": "examples.csv_table",
    "experiments.attempt": "research.experiments.trials",
    "experiments.bands": "research.experiments.plots",
    "experiments.choosing": "research.experiments.trials",
    "experiments.comparison": "research.experiments.statistics",
    "experiments.duels": "research.experiments.report_trials",
    "experiments.held_out": "research.experiments.splits",
    "experiments.ledger": "research.experiments.results",
    "experiments.material": "research.experiments.splits",
    "experiments.measuring": "research.experiments.measure",
    "experiments.merging": "research.experiments.results",
    "experiments.owners": "research.experiments.personalization",
    "experiments.personalization": "research.experiments.personalization",
    "experiments.personalization_report": "research.experiments.report_personalization",
    "experiments.picture": "research.experiments.plots",
    "experiments.plan": "research.experiments.plan",
    "experiments.preconditions": "research.experiments.checks",
    "experiments.report": "research.environment",
    "experiments.rescoring": "research.experiments.measure",
    "experiments.room": "research.experiments.checks",
    "experiments.run_folder": "research.experiments.results",
    "experiments.tally": "research.experiments.statistics",
    "experiments.trials": "research.experiments.trials",
    "experiments.trials_picture": "research.experiments.report_trials",
    "experiments.trials_report": "research.experiments.report_trials",
    "fingerprint": "models.fingerprint",
    "flat": "base.batch",
    "geometry": "prefix",
    "hardware": "research.environment",
    "head_losses": "base.loss",
    "initialization": "training.initialization",
    "interop.base_names": "interop.card",
    "interop.bottleneck": "interop.conversion",
    "interop.layout": "interop.conversion",
    "interop.peft_export": "interop.peft",
    "interop.peft_import": "interop.peft",
    "interop.positions": "interop.conversion",
    "interop.prefix_tuning": "interop.original",
    "loading": "base.loading",
    "losses": "base.loss",
    "markdown": "reporting.markdown",
    "models.cache": "models.cache_dir",
    "models.conversion": "models.gguf",
    "models.digest": "models.cache_dir",
    "models.package_index": "models.pypi",
    "models.pulling": "models.resolve",
    "models.record": "models.resolve",
    "models.resolving": "models.resolve",
    "models.tokenizer": "models.gguf",
    "packing": "base.prepacked_linear",
    "packing_trial": "base.prepacked_linear",
    "parameterization": "training.parameterization",
    "plain": "validation",
    "probe": "base.compatibility",
    "processor": "base.prepacked_linear",
    "quantization": "base.loading",
    "rounded_linear": "base.int8_linear",
    "row_prefixes": "base.prefix_batch",
    "serving.answering": "serving.api.streaming",
    "serving.answers": "serving.api.schemas",
    "serving.app": "serving.api.app",
    "serving.bodies": "serving.requests",
    "serving.chat": "serving.api.completions",
    "serving.completions": "serving.api.completions",
    "serving.configuration": "serving.config",
    "serving.engines": "serving.serve",
    "serving.files": "serving.api.files",
    "serving.gate": "serving.api.middleware",
    "serving.health": "serving.api.app",
    "serving.job_queue": "serving.jobs.queue",
    "serving.job_record": "serving.jobs.queue",
    "serving.job_settings": "serving.jobs.settings",
    "serving.job_taking": "serving.jobs.queue",
    "serving.keys": "serving.api.state",
    "serving.limits": "serving.rate_limits",
    "serving.local_engine": "serving.engine.local",
    "serving.measuring": "serving.serve",
    "serving.models": "serving.api.models",
    "serving.opening": "serving.served_model",
    "serving.prefixes": "serving.api.models",
    "serving.prompts": "serving.api.prompts",
    "serving.row_text": "serving.engine.detokenizer",
    "serving.running": "serving.serve",
    "serving.running_batch": "serving.engine.continuous_batch",
    "serving.served": "serving.served_model",
    "serving.server": "serving.api.state",
    "serving.supervisor": "serving.jobs.supervisor",
    "serving.trainer": "serving.jobs.trainer",
    "serving.training_run": "serving.jobs.worker",
    "serving.uploads": "serving.jobs.uploads",
    "serving.vllm.answer": "serving.vllm.engine",
    "serving.vllm.command": "serving.vllm.launch",
    "serving.vllm.fitting": "serving.vllm.checks",
    "serving.vllm.keeper": "serving.vllm.process_guard",
    "serving.vllm.memory": "serving.vllm.prefixes",
    "serving.vllm.pages": "serving.vllm.prefixes",
    "serving.vllm.pulse": "serving.vllm.process",
    "serving.vllm.salts": "serving.vllm.plan",
    "serving.vllm.sources": "serving.vllm.prefixes",
    "serving.vllm.starting": "serving.vllm.launch",
    "serving.waiting": "serving.engine.scheduler",
    "serving.watch": "serving.jobs.worker",
    "serving.writing": "serving.api.streaming",
    "store.administration": "store.store",
    "store.audit": "store.access",
    "store.bucket": "store.blobs",
    "store.catalogue": "store.database",
    "store.folder": "store.blobs",
    "store.garbage": "store.maintenance",
    "store.keys": "store.api_keys",
    "store.opening": "store.store",
    "store.tables": "store.schema",
    "store.verify": "store.maintenance",
    "training.beginning": "training.trainer",
    "training.course": "training.run_log",
    "training.curves": "training.run_log",
    "training.interrupt": "training.train",
    "training.learner": "training.trainer",
    "training.log": "training.run_log",
    "training.many": "training.train_many",
    "training.order": "training.batch_sampler",
    "training.schedule": "training.trainer",
    "trial": "base.compatibility",
    "turning": "base.sliding_window",
    "windows": "base.compatibility",
}
"""Old path to new path, both below `foreword`."""
_PACKAGES = ("baselines", "bench", "experiments")

RENAMED = {
    "base": {
        "PrefixesArgument": "base.base_model.PrefixesArgument",
        "batches_by_length": "base.batch.batches_by_length",
    },
    "base.attention": {
        "Attending": "AttentionContext",
        "DEVICES": "CAUSAL_DEVICES",
        "Slot": "LayerInfo",
        "attending": "attention_context",
    },
    "base.batch": {"FlatLayout": "PackedLayout", "lay_out": "pack_rows"},
    "base.compatibility": {"reach_into_windows": "enable_window_shift", "try_prefix": "check_prefix_effect"},
    "base.loading": {"kept_as": "existing_quantization"},
    "base.loss": {"find_plain_head": "detect_linear_head"},
    "base.prefix_batch": {"RowPrefixes": "PrefixBatch"},
    "base.prepacked_linear": {
        "Packed": "PrepackedWeight",
        "PackedLinear": "PrepackedLinear",
        "can_pack": "can_prepack",
        "packed_weights": "prepacked_weights",
        "packing_pays": "prepacking_pays",
        "prepare": "enable_prepacking",
    },
    "base.sliding_window": {"Turn": "RopeShift"},
    "research.baselines.protocol": {
        "Front": "ContextCost",
        "Setting": "AdapterInputs",
        "Subject": "EvaluatedModel",
        "Trainee": "Adapter",
    },
    "research.bench.workload": {
        "STEPS_OF_MEMORY": "research.bench.memory.WORKLOAD_STEPS",
        "learners": "trainers",
    },
    "research.experiments.measure": {"score_piece": "score_key"},
    "research.experiments.report_trials": {"duels": "comparisons"},
    "research.experiments.results": {"Ledger": "Results"},
    "research.experiments.splits": {"Material": "DataSplits", "hold_out": "split_by_group"},
    "research.experiments.statistics": {
        "CHANCE": "SIGNIFICANCE",
        "Contrast": "PairedTest",
        "duel": "paired_comparison",
    },
    "research.experiments.trials": {
        "choice_piece": "research.experiments.results.choice_key",
        "chosen_piece": "research.experiments.results.chosen_key",
    },
    "sampling": {
        "NoiseOfTheRow": "SampledRows",
        "StopOfTheRow": "StopStrings",
        "TextOfTheRow": "TextStreamer",
    },
    "serving.api.middleware": {"Gate": "RequestMiddleware"},
    "serving.api.state": {
        "Server": "ServerState",
        "Visitor": "RequestIdentity",
        "visitor": "authenticate",
        "visitor_of": "identity_of",
    },
    "serving.api.streaming": {
        "Writing": "Completions",
        "Written": "CompletedText",
        "pieces": "text_deltas",
        "while_there": "unless_gone",
    },
    "serving.engine": {
        "Engine": "serving.engine.protocol.Engine",
        "FinishReason": "serving.engine.protocol.FinishReason",
        "Row": "serving.engine.protocol.Row",
        "Sampling": "serving.engine.protocol.Sampling",
        "Token": "serving.engine.protocol.Token",
    },
    "serving.engine.continuous_batch": {"RunningBatch": "ContinuousBatch"},
    "serving.engine.detokenizer": {"Piece": "TextDelta"},
    "serving.engine.scheduler": {"Waiting": "FairQueue"},
    "serving.jobs": {
        "After": "serving.api.fine_tuning.After",
        "JobId": "serving.api.fine_tuning.JobId",
        "Limit": "serving.api.fine_tuning.Limit",
        "cancel_job": "serving.api.fine_tuning.cancel_job",
        "create_job": "serving.api.fine_tuning.create_job",
        "list_checkpoints": "serving.api.fine_tuning.list_checkpoints",
        "list_events": "serving.api.fine_tuning.list_events",
        "list_jobs": "serving.api.fine_tuning.list_jobs",
        "retrieve_job": "serving.api.fine_tuning.retrieve_job",
        "router": "serving.api.fine_tuning.router",
    },
    "serving.jobs.queue": {"beat": "heartbeat", "give_back": "release", "take": "claim"},
    "serving.jobs.uploads": {"check_room": "check_stored_bytes"},
    "serving.jobs.worker": {"Watch": "JobHeartbeat"},
    "serving.served_model": {"Served": "ServedModel"},
    "serving.vllm.plan": {"Salts": "CacheSalts"},
    "serving.vllm.prefixes": {
        "Pages": "ShardedPrefix",
        "PagesMemory": "ShardMemory",
        "Share": "HeadShard",
        "blocks_between": "serving.vllm.plan.blocks_between",
        "pages_of": "shard_of",
        "slots": "serving.vllm.plan.slots",
    },
    "serving.vllm.process": {"Pulse": "HealthPoller"},
    "store.access": {"FORGOTTEN": "store.forget.FORGOTTEN"},
    "store.database": {"Catalogue": "Database"},
    "store.store": {
        "CATALOGUE_FILE": "store.database.FILE",
        "open_catalogue": "store.schema.open_to_migrate",
        "places": "store.database.find_database",
    },
    "training.batch_sampler": {"Order": "BatchSampler"},
    "training.initialization": {
        "DEFAULT_WORDS": "training.settings.DEFAULT_WORDS",
        "starting_point": "initial_key_values",
    },
    "training.parameterization": {
        "Compiled": "base.prefix_batch.KeyValues",
        "KeysValues": "base.prefix_batch.KeyValuePair",
    },
    "training.run_log": {"Course": "RunLog", "SPEED_WINDOW": "SPEED_STEPS"},
    "training.trainer": {"Learner": "Trainer", "build_learner": "build_trainer"},
}
"""Path of a module now: its old names, and the new ones; with dots, below `foreword`: in another module."""

REMOVED = {
    "bench.room": "`foreword bench` no longer checks the machine's size before it measures",
    "evaluation.metrics.learned": "score texts with the package of the metric's authors "
    "(bert-score, bleurt, moverscore)",
    "experiments.cost": "the progress of `foreword reproduce` shows the time left",
    "experiments.trial_cost": "the progress of `foreword reproduce` shows the time left",
}
"""Modules that went out, by their paths below `foreword`, and what to do without them."""


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds a module under its old path and loads it from the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for an old path; None for anything else. Raises ModuleNotFoundError for one that is gone."""
        gone = REMOVED.get(fullname.removeprefix("foreword."))
        if gone is not None:
            # Without `name`: `from package import module` would put its own message in place of this one.
            raise ModuleNotFoundError(f"{fullname} is gone: {gone}")
        new = _new_path(fullname)
        found = None if new is None else importlib.util.find_spec(new)
        if found is None:
            return None
        package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, self, origin=found.origin, is_package=package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module under its new path, with a warning that says which."""
        module = importlib.import_module(_warned(spec.name))
        spec.loader_state = module.__spec__  # importing gives the module the old path's
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own specification back, as it has run under its new path, and its old names."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state
        if not hasattr(module, "__getattr__"):
            setattr(module, "__getattr__", functools.partial(old_name, module.__name__))  # noqa: B010

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs: the code under the new path."""
        new = _warned(fullname)
        spec = importlib.util.find_spec(new)
        loader = None if spec is None else spec.loader
        return loader.get_code(new) if isinstance(loader, importlib.abc.InspectLoader) else None

    def get_source(self, fullname: str) -> str | None:
        """None: the source has another path."""
        return None


def _new_path(old: str) -> str | None:
    package, _, name = old.partition(".")
    if package != "foreword":
        return None
    above, _, last = name.rpartition(".")
    if name not in MOVED and above in _PACKAGES:
        return f"foreword.{MOVED[above]}.{last}"
    return f"foreword.{MOVED[name]}" if name in MOVED else None


def _warned(old: str) -> str:
    new = _new_path(old)
    _warn(f"{old} is now {new}")
    return str(new)


def old_name(module: str, name: str) -> Any:
    """What a module's old name means now, with a warning that says the new path and name.

    Raises:
        AttributeError: it never had that name, or nothing took its place.
    """
    path = module.removeprefix("foreword.")
    new = RENAMED.get(path, {}).get(name)
    if new is not None:
        new = f"foreword.{new}" if "." in new else f"{module}.{new}"
        _warn(f"{name} is now {new}")
        home, _, name = new.rpartition(".")
        return getattr(importlib.import_module(home), name)
    for package in _PACKAGES:  # `rounds`, taken from `foreword.bench`, is looked for under the new name
        old = f"{package}.{name}"
        if path != MOVED[package] or importlib.util.find_spec(f"{module}.{name}") is not None:
            continue
        if old in MOVED or old in REMOVED:
            return importlib.import_module(f"foreword.{old}")
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def _warn(message: str) -> None:
    """Warn at the line that is to be changed: the first frame outside of this file and Python's imports."""
    frame: FrameType = sys._getframe(1)
    while frame.f_back is not None and _imports(str(frame.f_globals.get("__name__", ""))):
        frame = frame.f_back
    values = frame.f_globals
    warnings.warn_explicit(
        message,
        ForewordDeprecation,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=values.get("__name__", "<unknown>"),
        registry=values.setdefault("__warningregistry__", {}),
    )


def _imports(module: str) -> bool:
    return module == __name__ or module.partition(".")[0] in ("importlib", "_frozen_importlib")


def install() -> None:
    """Let old paths be found, once."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())
