"""What schemathesis is told beside the OpenAPI document: the attacks' files are uploads to try, and a file of
examples, which no schema describes."""

from __future__ import annotations

from typing import Any

import schemathesis

from fuzz import attacks


@schemathesis.hook
def before_add_examples(context: Any, examples: list[Any]) -> None:
    operation = context.operation
    if (operation.method.upper(), operation.path) == ("POST", "/v1/files"):
        body = {"purpose": "fine-tune", "file": b'{"source": "a", "target": "b"}\n'}
        examples.append(operation.Case(body=body, media_type="multipart/form-data"))
    if (operation.method.upper(), operation.path) != ("POST", "/v1/prefixes"):
        return
    for name, content in attacks.files():
        body = {"name": name, "file": content}
        examples.append(operation.Case(body=body, media_type="multipart/form-data"))
