"""A real Kubernetes on this machine: `cluster.py --help`."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated

import binaries
import containers
import control_plane
import images
import kubectl
import kueue
import network
import node
import packages
import policies
import s3
import teardown
import typer
from daemons import is_running, recorded, wait_until
from layout import (
    LOOPBACK,
    ClusterError,
    Layout,
    Ports,
    control_plane_only,
    full_cluster,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
control_plane_app = typer.Typer(no_args_is_help=True, help="An API server without a node, for integration tests.")
kueue_app = typer.Typer(no_args_is_help=True, help="Kueue, the job queue, from its own chart.")
policies_app = typer.Typer(no_args_is_help=True, help="NetworkPolicies, enforced or only accepted.")
s3_app = typer.Typer(no_args_is_help=True, help="An S3 server, on the node's address or elsewhere.")
app.add_typer(control_plane_app, name="control-plane")
app.add_typer(kueue_app, name="kueue")
app.add_typer(policies_app, name="policies")
app.add_typer(s3_app, name="s3")

Directory = Annotated[Path, typer.Option("--dir", help="State folder of this control plane.")]
ServerDirectory = Annotated[Path | None, typer.Option("--dir", help="State folder of a server on 127.0.0.1.")]


@app.command()
def build(
    names: Annotated[
        list[str] | None, typer.Argument(help="Build only these programs, and install no package.")
    ] = None,
) -> None:
    """Install the Debian packages (as root) and build the programs, as far as they are missing."""
    packages.require_linux()
    if names:
        binaries.build(tuple(names))
        return
    if os.geteuid() == 0:
        packages.install_missing(full_cluster())
    binaries.build()


@app.command()
def up() -> None:
    """Start the cluster, or repair it; ends when it is proven to work."""
    packages.require_linux_and_root()
    build(None)
    layout = full_cluster()
    begin = time.monotonic()
    with _alone(layout):
        started = _start_everything(layout)
        wait_until(lambda: kubectl.node_is_ready(layout), 90, "the node to be Ready", layout, "kubelet")
        if started or not kubectl.has_fake_gpus(layout):
            kubectl.add_fake_gpus(layout)
        _prove(layout, thoroughly=started)
    print(f"cluster {'up' if started else 'already up'} after {time.monotonic() - begin:.1f} s")
    print(f"KUBECONFIG={layout.kubeconfig}")


@app.command()
def down(
    *, purge: Annotated[bool, typer.Option("--purge", help="Also delete images, build cache and buckets.")] = False
) -> None:
    """End what `up`, `images` and `s3 up` started, and undo what they did to the machine."""
    layout = full_cluster()
    if teardown.is_clean(layout) and not purge:
        print(f"nothing of a cluster in {layout.root} runs or is left")
        return
    packages.require_linux_and_root()
    with _alone(layout):
        teardown.take_down(layout)
        if purge:
            teardown.purge(layout)
    print("cluster down")


@app.command()
def status() -> None:
    """What runs; exit code 1 unless the node is Ready."""
    layout = full_cluster()
    for name in recorded(layout):
        print(f"{name:26}{'running' if is_running(layout, name) else 'DEAD'}")
    ready = recorded(layout) != [] and kubectl.node_is_ready(layout)
    print(f"{'node':26}{'Ready' if ready else 'not ready'}")
    raise typer.Exit(0 if ready else 1)


@app.command("images")
def build_images() -> None:
    """Build every image (base, operator, preflight, trainer) into the running node; remove unused older ones."""
    layout = full_cluster()
    _require_running(layout)
    with _alone(layout):
        references = images.build_all(layout)
        images.remove_old(layout, references)
    print(json.dumps(references, indent=2))


@app.command()
def build_image(name: str, folder: Path) -> None:
    """Build the Dockerfile of a folder from the base image into the node; prints the reference and nothing else."""
    layout = full_cluster()
    _require_running(layout)
    with _alone(layout), _stdout_is_for_the_answer():
        reference = images.build_folder(layout, name, folder.resolve())
    print(reference)


@app.command()
def load_image(
    reference: Annotated[str, typer.Argument(help="An image archive, or an image of the Docker here.")],
) -> None:
    """Put any image into the node."""
    layout = full_cluster()
    _require_running(layout)
    if Path(reference).is_file():
        containers.import_archive(layout, Path(reference))
    else:
        containers.import_from_docker(layout, reference)


@app.command()
def program_image(
    name: str, path: Annotated[str, typer.Argument(help="Where the program is in the image, which starts it.")]
) -> None:
    """Put one of the programs into the node as an image of this file alone; prints its reference and nothing else."""
    layout = full_cluster()
    with _stdout_is_for_the_answer():
        _require_running(layout)
        with _alone(layout):
            reference = images.ensure_program(layout, name, path)
    print(reference)


@app.command()
def env() -> None:
    """Shell exports of the cluster, its programs, its storage and its images."""
    layout = full_cluster()
    values = {
        "KUBECONFIG": str(layout.kubeconfig),
        "FINETUNE_CLUSTER_DIR": str(layout.root),
        **s3.environment(layout),
        **images.environment(layout),
    }
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(os.pathsep.join(binaries.path_entries()))}:"$PATH"')


@app.command()
def program(name: str) -> None:
    """Build one of the programs if it is missing; prints its path and nothing else."""
    with _stdout_is_for_the_answer():
        binaries.build((name,))
    print(binaries.binary(name))


@app.command()
def source(name: str) -> None:
    """Print the folder with the source of a program's module, which may hold its definitions."""
    print(binaries.module_folder(name))


@control_plane_app.command("up")
def control_plane_up(
    directory: Directory,
    *,
    controller_manager: Annotated[bool, typer.Option("--controller-manager", help="Jobs, namespaces, owners.")] = False,
) -> None:
    """Start etcd and the API server on free ports; prints the kubeconfig's path and nothing else."""
    packages.require_linux()
    with _stdout_is_for_the_answer():
        binaries.build(binaries.CONTROL_PLANE)
    layout = control_plane_only(directory)
    with _alone(layout):
        control_plane.start_api_server(layout)
        if controller_manager:
            control_plane.start_controller_manager(layout)
        wait_until(
            lambda: kubectl.ask(layout, "get", "namespace", "default") is not None,
            30, "the default namespace", layout, "kube-apiserver",
        )  # fmt: skip
    print(layout.kubeconfig)


@control_plane_app.command("down")
def control_plane_down(directory: Directory) -> None:
    """End that control plane and forget its state."""
    layout = control_plane_only(directory)
    with _alone(layout):
        control_plane.stop_control_plane_only(layout)


@kueue_app.command("up")
def kueue_up(
    *,
    manage_all: Annotated[
        bool, typer.Option("--manage-all", help="Also hold Jobs without a queue (manageJobsWithoutQueueName).")
    ] = False,
) -> None:
    """Install Kueue, or change its configuration; ends when it answers."""
    layout = full_cluster()
    _require_running(layout)
    with _alone(layout):
        kueue.install(layout, manage_all=manage_all)


@kueue_app.command("down")
def kueue_down() -> None:
    """Uninstall Kueue; its queues and workloads go with it."""
    layout = full_cluster()
    _require_running(layout)
    with _alone(layout):
        kueue.uninstall(layout)


@policies_app.command("up")
def policies_up() -> None:
    """Enforce NetworkPolicies, with the firewall of kube-router; ends when it has written its packet rules."""
    layout = full_cluster()
    _require_running(layout)
    with _alone(layout):
        policies.enforce(layout)


@policies_app.command("down")
def policies_down() -> None:
    """Accept NetworkPolicies without enforcing them, as after `up`."""
    layout = full_cluster()
    _require_running(layout)
    with _alone(layout):
        policies.release(layout)


@s3_app.command("up")
def s3_up(directory: ServerDirectory = None) -> None:
    """Start the server; prints its endpoint and nothing else."""
    layout = _storage(directory)
    with _alone(layout):
        print(s3.start(layout))


@s3_app.command("down")
def s3_down(
    directory: ServerDirectory = None,
    *,
    purge: Annotated[bool, typer.Option("--purge", help="Also delete the objects.")] = False,
) -> None:
    """End the server."""
    layout = _storage(directory)
    with _alone(layout):
        s3.stop_server(layout, purge=purge)


def _start_everything(layout: Layout) -> bool:
    network.ensure_node_address(layout)
    network.ensure_pod_network(layout)
    started = [
        containers.start_containerd(layout),
        control_plane.start_api_server(layout),
        control_plane.start_controller_manager(layout),
        control_plane.start_scheduler(layout),
        node.start_kubelet(layout),
        node.start_proxy(layout),
        node.start_dns(layout),
    ]
    return any(started)


def _prove(layout: Layout, *, thoroughly: bool) -> None:
    wait_until(node.dns_answers, 30, "an answer from the cluster's DNS", layout, "coredns")
    wait_until(
        lambda: not kubectl.unavailable_api_services(layout), 60, "every APIService to be Available", layout,
        "kube-apiserver",
    )  # fmt: skip
    if thoroughly:
        kubectl.prove_a_namespace_ends(layout)


def _storage(directory: Path | None) -> Layout:
    if directory is None:
        packages.require_linux_and_root()
        packages.install_missing(full_cluster())  # the node's address has packet rules
        return full_cluster()
    return Layout(directory.resolve(), LOOPBACK, Ports())


def _require_running(layout: Layout) -> None:
    packages.require_linux_and_root()
    if not is_running(layout, "containerd"):
        raise ClusterError(f"no cluster runs from {layout.root}: start it with `cluster.py up`")


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """One command at a time per state folder."""
    layout.root.mkdir(parents=True, exist_ok=True)
    with (layout.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _stdout_is_for_the_answer() -> Iterator[None]:
    with redirect_stdout(sys.stderr):
        yield


def _last_lines(log: Path, count: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) if log.exists() else "(no log)"


def main() -> None:
    """Run a command; an expected failure is a sentence, the log's last lines and its path."""
    try:
        app()
    except ClusterError as error:
        if error.log:
            print(f"{_last_lines(error.log)}\nlog: {error.log}", file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
