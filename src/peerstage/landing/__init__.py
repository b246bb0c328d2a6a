"""Where bytes come down: a private directory inside the target, and what it takes for a file to get its final name."""

from peerstage.landing.base import Buffer, Landing, Ranges, Slot
from peerstage.landing.directory import DirectoryLanding
from peerstage.landing.leftovers import sweep

__all__ = ["Buffer", "DirectoryLanding", "Landing", "Ranges", "Slot", "sweep"]
