"""vLLM as an engine: a KV connector that puts prefixes into an unmodified vLLM, and the gateway's side of it.

In vLLM's processes run `connector.py` and `door.py`, in the gateway `engine.py` and `process.py`; both sign
and verify with `ticket.py`. Nothing here is imported before somebody asks for vLLM.
"""
