from pathlib import Path

from peerstage import RemotePeer


def test_stages(peer: RemotePeer, collect: Path, target: Path, leaves_nothing: None) -> None:
    (collect / "a").write_bytes(b"x" * 100000)
    (collect / "cback.collect").touch()
    with peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == 2
        peer.writeStageIndicator()
    assert (target / "a").read_bytes() == b"x" * 100000
    assert (collect / "cback.stage").exists()
