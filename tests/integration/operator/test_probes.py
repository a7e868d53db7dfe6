"""What the kubelet's probes hear of a real process that hangs, waits, or runs as a user without a name."""

import os
import signal
from pathlib import Path
from typing import Any

import yaml


def test_liveness_gets_no_answer_while_the_loop_hangs_and_one_again_after_it(operator: Any) -> None:
    assert operator.get("/healthz") == 200
    os.kill(operator.pid, signal.SIGSTOP)
    assert operator.get("/healthz") == 0
    os.kill(operator.pid, signal.SIGCONT)
    assert operator.get("/healthz") == 200


def test_an_operator_without_an_api_server_is_live_and_not_ready(
    control_plane: Path, operator_with: Any, tmp_path: Path, wait: Any
) -> None:
    away = yaml.safe_load(control_plane.read_text())
    away["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    kubeconfig = tmp_path / "away.yaml"
    kubeconfig.write_text(yaml.safe_dump(away))
    operator = operator_with(kubeconfig).launch()
    wait(lambda: operator.get("/healthz") == 200, operator.log.read_text)
    wait(lambda: "the API server is unreachable" in operator.log.read_text(), operator.log.read_text)
    assert (operator.get("/readyz"), operator.get("/healthz")) == (503, 200)


def test_an_operator_whose_user_has_no_name_serves(world: Any, access: Any, operator_with: Any) -> None:
    """As on a platform that chooses the user. The namespace of users only changes what the process believes to be."""
    operator = operator_with(access.kubeconfig)
    operator.env = {name: value for name, value in operator.env.items() if name not in {"USER", "LOGNAME"}}
    operator.start("unshare", "--user", "--map-user=1000650000", "--map-group=1000650000")
    world.create()
    world.pass_preflight()
