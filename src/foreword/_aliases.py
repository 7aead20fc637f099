"""Old paths of modules: `import foreword.fingerprint` still works, and says the new path once.

One finder on `sys.meta_path` serves all of them, in front of Python's own: those would find the files of a
moved package under its old name, and load it a second time. Both paths name one module.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import CodeType, ModuleType

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
    "checkpointing": "base.attention",
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


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds a module under its old path and loads it from the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for an old path; None for anything else."""
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
        """Give the module its own specification back; it has run under its new path."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state

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
    warnings.warn(f"{old} is now {new}", ForewordDeprecation, stacklevel=3)
    return str(new)


def install() -> None:
    """Let old paths be found, once."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())
