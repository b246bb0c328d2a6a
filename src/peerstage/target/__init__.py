"""The local side: files are received in a private directory inside the target and published at the end."""

from peerstage.target.base import Buffer, CommandTarget, IncomingFile, Selection, Target
from peerstage.target.directory import DirectoryTarget
from peerstage.target.ranges import Ranges
from peerstage.target.sweep import sweep

__all__ = ["Buffer", "CommandTarget", "DirectoryTarget", "IncomingFile", "Ranges", "Selection", "Target", "sweep"]
