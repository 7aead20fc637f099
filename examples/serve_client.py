"""Your own fine-tuning server, with nothing but the `openai` package.

Start `foreword serve --no-keys` in one terminal, and this in another:

    python examples/serve_client.py [http://127.0.0.1:8000/v1]

With keys, OPENAI_API_KEY holds yours.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from openai import OpenAI

DATA = Path(__file__).parent / "demo"
MESSAGE = "where is my parcel??? ordered the oak shelf 9 days ago, order 1187, and nobody answers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--keep", action="store_true", help="leave the model on the server")
    given = parser.parse_args()
    client = OpenAI(base_url=given.url, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    base = client.models.list().data[0].id
    print(f"base model: {base}")

    print("\n1. Upload examples.")
    train = client.files.create(file=DATA / "train.jsonl", purpose="fine-tune")
    dev = client.files.create(file=DATA / "dev.jsonl", purpose="fine-tune")
    print(f"   {train.filename}: {train.id}, {dev.filename}: {dev.id}")

    print("\n2. Start a job, and follow it.")
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=train.id,
        validation_file=dev.id,
        suffix="triage",
        # `steps` is Foreword's own; OpenAI's n_epochs, batch_size and learning_rate_multiplier work, too.
        method={"type": "supervised", "supervised": {"hyperparameters": {"steps": given.steps}}},  # type: ignore[typeddict-unknown-key]
    )
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job.id)
        events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
        for event in reversed([event for event in events if event.id not in seen]):
            seen.add(event.id)
            print(f"   {event.message}")
        if job.status not in ("queued", "running"):
            break
        time.sleep(1)
    if job.fine_tuned_model is None:
        raise SystemExit(f"the job ended as {job.status}: {job.error and job.error.message}")
    model = job.fine_tuned_model

    print(f"\n3. Chat with {model}.")
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": MESSAGE}], temperature=0, max_tokens=48
    )
    print(f"   {answer.choices[0].message.content}")

    print("\n4. The same, streamed.")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": MESSAGE}],
        temperature=0,
        max_tokens=48,
        stream=True,
    )
    print("   ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    if not given.keep:
        print("\n5. Delete model and files.")
        client.models.delete(model)
        for file in (train, dev):
            client.files.delete(file.id)


if __name__ == "__main__":
    main()
