"""The two ends of an isolated child, connected in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from peerstage.isolation.child.child_target import ChildTarget
from peerstage.isolation.parent.frame_receiver import FrameReceiver
from peerstage.isolation.protocol.frames import Admit, AskMissing, Data, Frame, FrameParser, encode_frame
from peerstage.isolation.protocol.values import decode_json, encode_json
from peerstage.records import Limits
from peerstage.target.base import Buffer, Target


class ChildLink:
    """Passes each frame of a `ChildTarget` to a `FrameReceiver` at once, and the answers back.

    Attributes:
        child_target: The child's end.
        receiver: The parent's end.
        questions: The frames that wanted an answer.
        sent_bytes: File data that the child sent.
        max_unread: The most answers that the child had not read.
    """

    def __init__(self, target: Target, *, limits: Limits | None = None, tries: int = 1) -> None:
        self.receiver = FrameReceiver(target, limits or Limits(), tries=tries, answer=self._answer)
        self.child_target = ChildTarget(
            cast(Any, self),
            self._receive_answer,
            selection=target.selection,
            verifies_stability=target.verifies_stability,
        )
        self.questions: list[Frame] = []
        self.sent_bytes = 0
        self.max_unread = 0
        self._parser = FrameParser()
        self._answers: deque[bytes] = deque()

    def put(self, frame: Frame) -> None:
        if isinstance(frame, AskMissing) or (isinstance(frame, Admit) and frame.wants_answer):
            self.questions.append(frame)
        for parsed in self._parser.feed(memoryview(encode_frame(frame))):
            self.receiver.handle(parsed)

    def put_data(self, file_number: int, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        self.sent_bytes += length
        self.put(Data(file_number, offset, memoryview(b"".join(buffers))))

    def flush(self) -> None:
        pass

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.append(encode_json(answer))
        self.max_unread = max(self.max_unread, len(self._answers))

    def _receive_answer(self) -> Any:
        return decode_json(self._answers.popleft())
