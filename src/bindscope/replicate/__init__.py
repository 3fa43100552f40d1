"""The reference study's published result files, computed again, as published and as controlled."""

from bindscope.replicate.replication import Replication, replicate

__all__ = ["Replication", "replicate"]
