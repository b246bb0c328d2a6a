"""The protocol of parent and child: jobs in JSON to the child; frames with file data and replies to the parent."""
