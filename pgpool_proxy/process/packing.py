"""A configuration on its way from the supervisor to a worker."""

from __future__ import annotations

import base64
import pickle

from pgpool_proxy.settings.config import Config


def packed(config: Config) -> str:
    """As text, for a process of ours."""
    return base64.b64encode(pickle.dumps(config)).decode()


def unpacked(text: str) -> Config:
    """Only of what the supervisor has sent, whom a worker obeys anyway."""
    found: Config = pickle.loads(base64.b64decode(text))
    return found
