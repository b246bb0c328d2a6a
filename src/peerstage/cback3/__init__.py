"""Lets the real cback3 stage through peerstage: an extended action, named in cback3's own configuration (PARITY 24).

Named ``stage``, it takes the place of the built-in action, so that ``cback3 stage`` and ``cback3 all`` stay what they
are in root's crontab. A site adds five lines to its configuration, before ``</cb_config>``::

    <extensions>
      <action>
        <name>stage</name><module>peerstage.cback3</module><function>executeAction</function><index>200</index>
      </action>
    </extensions>

and one line takes them away again, if these are its only extensions::

    sed -i '/<extensions>/,/<\\/extensions>/d' /etc/cback3.conf

The ``<stage>`` section, its peers and ``<options>`` are read as the built-in action reads them, and stay valid without
us. What is ours alone stands in a small file beside it, which need not be there: see `peerstage.cback3.settings`.

Nothing of cback3 is imported: the module works on the objects that it is given.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["executeAction"]


def executeAction(configPath: Any, options: Any, config: Any) -> None:
    """Stage all peers of the ``<stage>`` section, as cback3's own action does.

    First, what killed runs have left below the staging directory is removed. Then for each peer that is ready its files
    are staged into ``STAGING/YYYY/MM/DD/PEER``, and it gets its stage indicator; a peer that fails is logged, and the
    others go on. At the end the master's own stage indicator is written into the daily directory.

    As root the files and directories are given to ``backup_user`` and ``backup_group``. ``rcp_command`` is not run,
    unless our own file says ``transport = rcp``.

    Args:
        configPath: Path of cback3's configuration file.
        options: cback3's command line; its ``full`` is looked at.
        config: cback3's configuration, parsed.

    Raises:
        ValueError: Something in the configuration can not be meant; nothing was connected.
        StageError: Our own file is wrong, or a directory or the indicator in the staging directory could not be made.
    """
    from peerstage.cback3.action import run  # cback3 imports this module for every action, and waits for it

    run(os.fspath(configPath), config, full=bool(getattr(options, "full", False)))
