"""One language model in two sessions: one reads the prompt, another makes the answer's tokens.

Prompts are matrix products, single tokens are reads of all weights, and what is fastest for the one
need not be for the other. The cache changes hands once, as numpy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geomag_edge.runtime.engines.engine import Session

HANDS_OVER = ("ort-cpu", "openvino")
"""Engines that keep a cache where numpy can read it."""


class SplitSession:
    """The LLM with one session for prompts and another for single tokens; closes both."""

    def __init__(self, prefill: Session, decode: Session):
        self._prefill, self._decode = prefill, decode
        self.provider = f"prefill {prefill.provider}; decode {decode.provider}"

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; nothing of a prompt's pass is kept, for the other session reads it."""
        if feeds["inputs_embeds"].shape[1] == 1:
            return self._decode.run(feeds, keep)
        return self._prefill.run(feeds)

    def close(self) -> None:
        """Closes both."""
        self._prefill.close()
        self._decode.close()
