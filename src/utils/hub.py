"""Whether the model hub answers, asked once a process.

Left to itself its client tries 23 s for every file before it looks into its cache: minutes for a cached model on a
laptop without a network.
"""

from functools import cache

import httpx
from huggingface_hub import constants

PATIENCE = 5.0  # seconds
TRIES = 2


def settle_hub() -> None:
    """Where the hub does not answer, whatever asks it in this process takes its cache alone, as by HF_HUB_OFFLINE.

    Any answer counts, also a refusal: what it means is its client's business.
    """
    if not constants.HF_HUB_OFFLINE and not answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True


@cache
def answers(address: str) -> bool:
    for _ in range(TRIES):
        try:
            httpx.head(address, timeout=PATIENCE)
        except httpx.TransportError:
            continue
        return True
    return False
