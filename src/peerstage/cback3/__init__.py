"""An extended action for cback3 that stages through peerstage.

Named ``stage``, it replaces cback3's built-in action, so that root's crontab stays unchanged. A site adds five lines to
cback3's configuration, before ``</cb_config>``::

    <extensions>
      <action>
        <name>stage</name><module>peerstage.cback3</module><function>executeAction</function><index>200</index>
      </action>
    </extensions>

and removes them again with one line, if it has no other extensions::

    sed -i '/<extensions>/,/<\\/extensions>/d' /etc/cback3.conf

The ``<stage>`` section, its peers and ``<options>`` are read as the built-in action reads them, and stay valid without
peerstage. Settings for peerstage alone are in an optional file next to cback3's configuration file: see
`peerstage.cback3.settings`.

This package imports nothing of cback3: it only reads attributes of the objects that it is given.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["executeAction"]


def executeAction(configPath: Any, options: Any, config: Any) -> None:
    """Stage all peers of the ``<stage>`` section, as cback3's own action does.

    First, the leftovers of killed runs are removed from the staging directory. Then each peer that is ready is staged
    into ``STAGING/YYYY/MM/DD/PEER`` and gets its stage indicator; a failure of one peer is logged and does not stop
    the others. Finally, the master's own stage indicator is written into the daily directory.

    As root, the files and directories are owned by ``backup_user`` and ``backup_group``. ``rcp_command`` is run only if
    the settings file says ``transport = rcp``.

    Args:
        configPath: Path of cback3's configuration file.
        options: The command-line options of cback3, of which ``full`` is used.
        config: The parsed configuration of cback3.

    Raises:
        ValueError: If the configuration is invalid. Nothing was sent.
        StageError: If the settings file is invalid, or a directory or the indicator in the staging directory could not
            be created.
    """
    from peerstage.cback3.action import stage_all  # here, as cback3 imports this module for every action

    stage_all(os.fspath(configPath), config, full=bool(getattr(options, "full", False)))
