"""Remove old daily directories: which are old, which a peer still needs, what is in them, and the removal."""

from peerstage.fleet.prune.pruning import prune, prune_after_run, prune_pool, reclaimable_bytes

__all__ = ["prune", "prune_after_run", "prune_pool", "reclaimable_bytes"]
