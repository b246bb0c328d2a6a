"""Runs inside the client container: check, stage and mark a peer on a machine without any ssh program.

Reads jobs as lines of JSON, and answers each with another line. PATH is empty, and starting a process is refused and
reported.
"""

import hashlib
import json
import os
import sys
import tempfile
import threading

STARTS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
}
started = []


def refuse(event, arguments):
    if event in STARTS:
        started.append(f"{event} {arguments!r}")
        raise RuntimeError(f"The client may not start a process: {event}")


def main():
    os.environ["PATH"] = ""
    sys.addaudithook(refuse)
    for line in sys.stdin:
        send(stage(json.loads(line)))


def send(answer):
    print(json.dumps(answer), flush=True)


def stage(job):
    from peerstage import Limits, RemotePeer, Retry, SSHOptions

    def hold(progress):
        nonlocal held
        if job["hold"] and not held and 0 < progress.bytes_done < (progress.bytes_total or 1 << 62):
            held = True
            send({"holding": progress.bytes_done})
            sys.stdin.readline()

    held = False
    started.clear()
    choice = {"guarded": True} if job.get("transport") == "guarded" else {"transport": job.get("transport", "sftp")}
    ssh = SSHOptions(
        identity="/opt/id", known_hosts=job["known_hosts"].encode(), config=(), agent=False, **job.get("ssh", {})
    )
    answer = {"error": None, "files": {}, "resumed": 0, "retries": 0}
    with tempfile.TemporaryDirectory() as target:
        peer = RemotePeer(
            job["host"],
            job["collect"],
            "/tmp",
            job["user"],
            ssh=ssh,
            limits=Limits(**job["limits"]),
            retry=Retry(**job.get("retry", {})),
            on_progress=hold,
            **choice,
        )
        try:
            with peer:
                answer["ready"] = peer.checkCollectIndicator()
                answer["count"] = peer.stagePeer(target)
                if job.get("mark", True):
                    peer.writeStageIndicator()
        except OSError as exc:
            answer["error"] = [type(exc).__name__, str(exc)]
        if peer.last_report is not None:
            answer["resumed"], answer["retries"] = peer.last_report.resumed_bytes, peer.last_report.retries
        for name in sorted(os.listdir(target)):
            with open(os.path.join(target, name), "rb") as file:
                answer["files"][name] = hashlib.file_digest(file, "sha256").hexdigest()
    answer["started"] = list(started)
    answer["threads"] = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return answer


main()
