"""OpenAI's walk-through of fine-tuning, with the official client and nothing changed but where it connects.

    python walk_through.py fine_tuning | tools

OPENAI_BASE_URL and OPENAI_API_KEY, which the client reads by itself, say where; MODEL is the model to start from. What
came of it is printed as JSON. Needs the environment of `make test-clients`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from typing import Any, Literal

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI()
MODEL = os.environ["MODEL"]
QUESTION = "Is the mug blue?"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paint something.",
            "parameters": {
                "type": "object",
                "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
                "required": ["colour"],
            },
        },
    }
]


class Answer(BaseModel):
    """What a response is to be."""

    mood: Literal["glad", "sad"]


def upload(name: str, lines: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return client.files.create(file=(name, content), purpose="fine-tune").id


def finished(job: Any) -> Any:
    """The job when it has ended."""
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


def fine_tuning() -> dict[str, Any]:
    """Supervised, then preferences from there; the models are used by chat and by responses."""
    examples = [
        {
            "messages": [
                {"role": "system", "content": "Answer politely."},
                {"role": "user", "content": f"{QUESTION} {n}"},
                {"role": "assistant", "content": "It is, thank you."},
            ]
        }
        for n in range(10)
    ]
    file = upload("polite.jsonl", examples)
    job = client.fine_tuning.jobs.create(
        training_file=file,
        validation_file=upload("more.jsonl", examples[:3]),
        model=MODEL,
        suffix="polite",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 5}}},
    )
    job = finished(job)
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    preferences = [
        {
            "input": {"messages": [{"role": "user", "content": f"{QUESTION} {n}"}]},
            "preferred_output": [{"role": "assistant", "content": "It is, thank you."}],
            "non_preferred_output": [{"role": "assistant", "content": "Yes."}],
        }
        for n in range(10)
    ]
    second = client.fine_tuning.jobs.create(
        training_file=upload("preferences.jsonl", preferences),
        model=job.fine_tuned_model,
        suffix="politer",
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 1, "batch_size": 5}}},
    )
    second = finished(second)
    messages: Any = [{"role": "user", "content": QUESTION}]
    asked: Any = {"model": second.fine_tuned_model, "input": QUESTION, "temperature": 0}
    chat = client.chat.completions.create(
        model=second.fine_tuned_model, messages=messages, max_completion_tokens=8, temperature=0
    )
    whole = client.responses.create(max_output_tokens=8, **asked)
    with client.responses.stream(max_output_tokens=8, **asked) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    parsed = client.responses.parse(text_format=Answer, **asked).output_parsed
    assert isinstance(parsed, Answer)
    return {
        "models": [job.fine_tuned_model, second.fine_tuned_model],
        "steps": [int(row["step"]) for row in rows],
        "losses": all(float(row["train_loss"]) > 0 for row in rows[1:]),
        "events": [event.message for event in client.fine_tuning.jobs.list_events(job.id).data][:1],
        "chat": chat.choices[0].message.content,
        "response": whole.output_text,
        "streamed": streamed,
    }


def tools() -> dict[str, Any]:
    """Examples that call a tool; the model then has to call it."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "paint", "arguments": '{"colour": "blue"}'},
    }
    examples = [
        {
            "messages": [
                {"role": "user", "content": f"Paint mug {n} blue."},
                {"role": "assistant", "tool_calls": [call]},
            ],
            "tools": TOOLS,
            "parallel_tool_calls": False,
        }
        for n in range(10)
    ]
    job = client.fine_tuning.jobs.create(
        training_file=upload("tools.jsonl", examples),
        model=MODEL,
        suffix="painter",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 5}}},
    )
    job = finished(job)
    answer = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "Paint the mug blue."}],
        tools=TOOLS,
        tool_choice="required",
        temperature=0,
    )
    (called,) = answer.choices[0].message.tool_calls or []
    arguments = json.loads(called.function.arguments)
    return {"model": job.fine_tuned_model, "name": called.function.name, "keys": sorted(arguments)}


if __name__ == "__main__":
    print(json.dumps({"fine_tuning": fine_tuning, "tools": tools}[sys.argv[1]]()))
