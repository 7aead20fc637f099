"""Where base models' weights come from: aliases, folders, the Hugging Face Hub and the package index.

Nothing here runs a model; `resolve` turns a name into a folder that transformers can load.
"""

from foreword.models.catalogue import CATALOGUE, KnownModel
from foreword.models.hub import ResolvedModel
from foreword.models.resolve import pull, resolve

__all__ = ["CATALOGUE", "KnownModel", "ResolvedModel", "pull", "resolve"]
