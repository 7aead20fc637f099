"""What training costs serving: the same clients with and without a job in training, in turns in one run.

    python benchmarks/serve_beside_training.py --clients 4 --rounds 3 --seconds 20

Starts `foreword serve` on the real base model and speaks to it through the `openai` package. Prints a JSON
object per turn, and the ratio of both at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai

DATA = Path(__file__).parents[1] / "examples" / "demo" / "train.jsonl"
PROMPT = "where is my parcel??? ordered the oak shelf 9 days ago, order 1187, and nobody answers"
MODELS = 4
ENDLESS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--trainer-threads", default="none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from foreword.cli import main; main()"]
        command += ["serve", "--no-keys", "--port", "0", "--json"]
        command += ["--base", given.base, "--store", f"{folder}/store"]
        command += ["--set", f"trainer_threads={given.trainer_threads}", "--set", "idle_seconds=600"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            listening = json.loads(server.stdout.readline())
            client = openai.OpenAI(base_url=listening["url"], api_key="none", max_retries=0, timeout=600)
            compare(client, listening["base"], given)
        finally:
            server.terminate()
            server.wait()


def compare(client: openai.OpenAI, base: str, given: Any) -> None:
    file = client.files.create(file=DATA, purpose="fine-tune").id
    models = [finished(client, start(client, base, file, f"m{n}", 1)) for n in range(MODELS)]
    turn(client, models, given.clients, 5.0, given.tokens)  # warm
    figures: dict[str, list[dict[str, float]]] = {"alone": [], "beside training": []}
    for number in range(given.rounds):
        figures["alone"].append(turn(client, models, given.clients, given.seconds, given.tokens))
        job = start(client, base, file, f"endless{number}", ENDLESS)
        until_training(client, job, 2)
        figures["beside training"].append(turn(client, models, given.clients, given.seconds, given.tokens))
        client.fine_tuning.jobs.cancel(job)
        time.sleep(5)  # the step under way ends
        for what, turns in figures.items():
            print(json.dumps({"turn": number, "what": what, **turns[-1]}), flush=True)
    ratios = {
        name: round(
            statistics.median(t[name] for t in figures["beside training"])
            / statistics.median(t[name] for t in figures["alone"]),
            3,
        )
        for name in figures["alone"][0]
    }
    print(json.dumps({"ratio of medians": ratios}))


def start(client: openai.OpenAI, base: str, file: str, name: str, steps: int) -> str:
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"steps": steps}}}
    return client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        suffix=name,
        method=method,
        extra_body={"template": {"style": "separator"}},  # as the figures in the docs were measured
    ).id


def finished(client: openai.OpenAI, identifier: str) -> str:
    while (job := client.fine_tuning.jobs.retrieve(identifier)).status in ("queued", "running"):
        time.sleep(0.5)
    assert job.fine_tuned_model is not None, job.error
    return job.fine_tuned_model


def until_training(client: openai.OpenAI, identifier: str, seconds: float) -> None:
    """Until training has start_time, and a little longer."""
    while client.fine_tuning.jobs.retrieve(identifier).status != "running":
        time.sleep(0.2)
    time.sleep(seconds)


def turn(
    client: openai.OpenAI, models: list[str], clients: int, seconds: float, tokens: int
) -> dict[str, float]:
    """Requests a second, and seconds of a request, of clients who ask again as soon as they are answered."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds

    def ask(number: int) -> None:
        while (start_time := time.perf_counter()) < ends:
            client.completions.create(
                model=models[number % len(models)], prompt=PROMPT, max_tokens=tokens, temperature=0
            )
            taken.append(time.perf_counter() - start_time)

    start_time = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.sort()
    return {
        "requests_per_second": round(len(taken) / (time.perf_counter() - start_time), 3),
        "p50_seconds": round(statistics.median(taken), 3),
        "p95_seconds": round(taken[int(len(taken) * 0.95)], 3),
    }


if __name__ == "__main__":
    main()
