"""A scaling policy for Ray Serve: the replicas that ``energylens control`` wrote, while they hold.

In the deployment's options, with ``ENERGYLENS_REPLICAS_FILE`` set for Ray's controller::

    autoscaling_config:
      min_replicas: 1
      max_replicas: 8
      policy:
        policy_function: energylens.online.ray_policy:replicas

Without a file, or with one that has run out or makes no sense, the target stays what it is.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "ENERGYLENS_REPLICAS_FILE"


def wanted(path: str | Path, now_s: float) -> int | None:
    """Read how many replicas a value file asks for; None where it does not hold.

    Parameters
    ----------
    path : str or Path
        As ``--act ray`` writes it: ``replicas`` and ``expires_at_s``, seconds since 1970.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        replicas, expires_s = told["replicas"], told["expires_at_s"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sensible = type(replicas) is int and replicas >= 1 and isinstance(expires_s, int | float)
    return replicas if sensible and math.isfinite(expires_s) and now_s < expires_s else None


def replicas(ctx: Any) -> tuple[int, dict[str, Any]]:
    """Decide for one deployment (Ray's ``policy_function``).

    Returns
    -------
    int, dict
        The target, and nothing to remember.
    """
    path = os.environ.get(VARIABLE)
    found = None if not path else wanted(path, time.time())
    if found is None:
        return int(ctx.target_num_replicas), {}
    low, high = int(ctx.capacity_adjusted_min_replicas), int(ctx.capacity_adjusted_max_replicas)
    return max(low, min(found, high)), {}
