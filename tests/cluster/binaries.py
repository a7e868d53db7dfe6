"""Build the cluster's Go programs from the module proxy, once per version."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from layout import CACHE, ClusterError

MODULES = Path(__file__).parent / "binaries"
KUBERNETES = "k8s.io/kubernetes"
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
PROMETHEUS = "github.com/prometheus/prometheus"
FLUX = "github.com/fluxcd"
ARGO_CD = "github.com/argoproj/argo-cd/v3"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5"
TRAINER = "github.com/kubeflow/trainer/v2"
KSERVE = "github.com/kserve/kserve"
VOLCANO = "volcano.sh/volcano"
GRAFANA_SDK = "github.com/grafana/grafana-foundation-sdk/go"
DRA = "sigs.k8s.io/dra-example-driver"
KUBE_ROUTER = "github.com/cloudnativelabs/kube-router/v2"
MINOR = os.environ.get("KUBERNETES_MINOR", "")
"""The older Kubernetes of a control plane without a node, for example 1.31; empty for the cluster's own."""
DOWNLOAD_ATTEMPTS = 4


@dataclass(frozen=True)
class Program:
    """A program, the folder of the Go module that pins it, and its package."""

    name: str
    folder: str
    module: str
    package: str
    tags: str = ""


def _kubernetes(name: str) -> Program:
    folder = f"kubernetes-{MINOR}" if MINOR else "kubernetes"
    return Program(name, folder, KUBERNETES, f"{KUBERNETES}/cmd/{name}")


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubelet"),
        _kubernetes("kube-proxy"),
        _kubernetes("kubeadm"),
        Program("coredns", "coredns", "github.com/coredns/coredns", "."),
        Program("helm", "helm", "helm.sh/helm/v4", "helm.sh/helm/v4/cmd/helm"),
        Program("buildkitd", "buildkit", "github.com/moby/buildkit", "github.com/moby/buildkit/cmd/buildkitd"),
        Program("buildctl", "buildkit", "github.com/moby/buildkit", "github.com/moby/buildkit/cmd/buildctl"),
        Program("kueue", "kueue", "sigs.k8s.io/kueue", "sigs.k8s.io/kueue/cmd/kueue"),
        Program("jobset", "kubeflow", "sigs.k8s.io/jobset", "sigs.k8s.io/jobset"),
        Program("kubeflow-trainer", "kubeflow", TRAINER, f"{TRAINER}/cmd/trainer-controller-manager"),
        Program("pause", "pause", "finetune.dev/binaries/pause", "."),
        Program("argocd", "argo-cd", ARGO_CD, f"{ARGO_CD}/cmd"),
        Program("kustomize", "kustomize", KUSTOMIZE, KUSTOMIZE),
        Program("kube-router", "kube-router", KUBE_ROUTER, f"{KUBE_ROUTER}/cmd/kube-router"),
        Program("registry", "registry", "github.com/distribution/distribution/v3", "."),
        Program("health", "health", "github.com/fluxcd/pkg/runtime", "."),
        Program(
            "actionlint", "actionlint", "github.com/rhysd/actionlint", "github.com/rhysd/actionlint/cmd/actionlint"
        ),
        Program(
            "prometheus-operator", "prometheus-operator", PROMETHEUS_OPERATOR, f"{PROMETHEUS_OPERATOR}/cmd/operator"
        ),
        Program(
            "prometheus-config-reloader",
            "prometheus-operator",
            PROMETHEUS_OPERATOR,
            f"{PROMETHEUS_OPERATOR}/cmd/prometheus-config-reloader",
        ),
        Program(  # with the discovery of Kubernetes alone, and without its web pages
            "prometheus",
            "prometheus",
            PROMETHEUS,
            f"{PROMETHEUS}/cmd/prometheus",
            tags="remove_all_sd,enable_kubernetes_sd",
        ),
        Program("source-controller", "flux", f"{FLUX}/source-controller", f"{FLUX}/source-controller"),
        Program("kustomize-controller", "flux", f"{FLUX}/kustomize-controller", f"{FLUX}/kustomize-controller"),
        Program("llmisvc", "kserve", KSERVE, f"{KSERVE}/cmd/llmisvc"),
        Program("kserve", "kserve", KSERVE, f"{KSERVE}/cmd/manager"),
        Program("volcano-scheduler", "volcano", VOLCANO, f"{VOLCANO}/cmd/scheduler"),
        Program("volcano-controller", "volcano", VOLCANO, f"{VOLCANO}/cmd/controller-manager"),
        Program("dashboards", "dashboards", GRAFANA_SDK, "."),
        Program("dra-example-kubeletplugin", "dra", DRA, f"{DRA}/cmd/dra-example-kubeletplugin"),
    )
}
ON_DEMAND = (
    *("kueue", "health", "registry", "actionlint", "kubeadm", "jobset", "kubeflow-trainer"),
    *("kube-router", "prometheus-operator", "source-controller", "kustomize-controller", "argocd", "kustomize"),
    *("llmisvc", "kserve", "prometheus-config-reloader", "prometheus", "volcano-scheduler", "volcano-controller"),
    *("dra-example-kubeletplugin", "dashboards"),
)
BASIC = tuple(name for name in PROGRAMS if name not in ON_DEMAND)
"""What every cluster needs; Kueue takes minutes to build and is built when it is asked for, as are the tests' tools."""
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager")


def binary(name: str) -> str:
    """The path of a built program."""
    return str(_path(PROGRAMS[name]))


def path_entries() -> list[str]:
    """The folders a user's PATH needs for kubectl and helm."""
    return [str(_path(PROGRAMS[name]).parent) for name in ("kubectl", "helm")]


def missing(names: tuple[str, ...] | None = None) -> list[Program]:
    """What has not been built in its pinned version yet."""
    return [PROGRAMS[name] for name in names or BASIC if not _path(PROGRAMS[name]).exists()]


def build(names: tuple[str, ...] | None = None) -> None:
    """Build what is missing, one line per program."""
    todo = missing(names)
    if not todo:
        return
    _require_go()
    with ThreadPoolExecutor(1) as network:  # the processors build while the next modules are fetched
        fetched = [network.submit(_download, program) for program in todo]
        for number, (program, modules) in enumerate(zip(todo, fetched, strict=True), start=1):
            print(f"[{number}/{len(todo)}] building {program.name} {_version(program)} … ", end="", flush=True)
            begin = time.monotonic()
            modules.result()
            _build(program)
            print(f"{time.monotonic() - begin:.0f} s", flush=True)


def module_folder(name: str) -> Path:
    """Where the Go tool keeps the source of a program's module, which may hold a chart or definitions."""
    program = PROGRAMS[name]
    found = subprocess.run(
        ["go", "mod", "download", "-json", program.module],
        cwd=MODULES / program.folder,
        env={**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off"},
        check=False,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise ClusterError(f"the source of {program.module} cannot be found: {found.stdout}{found.stderr}")
    return Path(json.loads(found.stdout)["Dir"])


def _download(program: Program) -> None:
    """Fetch the modules that the program is built from; the Go tool itself gives up at the first failed request."""
    for attempt in range(DOWNLOAD_ATTEMPTS):
        with _log(f"download-{program.name}").open("wb") as log:
            done = subprocess.run(
                ["go", "list", "-deps", f"-tags={program.tags}", program.package],
                cwd=MODULES / program.folder,
                env=_environment(),
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        if done.returncode == 0:
            return
        time.sleep(2**attempt)


def _build(program: Program) -> None:
    target = _path(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    log = _log(f"build-{program.name}")
    partial = target.with_suffix(f".{os.getpid()}")
    flags = ["-trimpath", f"-tags={program.tags}", "-ldflags", _linker_flags(program)]
    with log.open("wb") as output:
        result = subprocess.run(
            ["go", "build", *flags, "-o", str(partial), program.package],
            cwd=MODULES / program.folder,
            env=_environment(),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if result.returncode:
        raise ClusterError(f"building {program.name} failed", log)
    partial.rename(target)  # a build that was cut off never looks finished


def _environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


def _log(name: str) -> Path:
    path = CACHE / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _linker_flags(program: Program) -> str:
    """Kubernetes learns its version at link time; helm and admission webhooks compare it."""
    flags = ["-s", "-w"]
    if program.module == KUBERNETES:
        version = _version(program)
        major, minor = version.removeprefix("v").split(".")[:2]
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            flags += [f"-X {package}.gitVersion={version}", f"-X {package}.gitTreeState=clean"]
            flags += [f"-X {package}.gitMajor={major}", f"-X {package}.gitMinor={minor}"]
    return " ".join(flags)


def _path(program: Program) -> Path:
    return CACHE / f"{program.folder}-{_version(program)}" / program.name


def _version(program: Program) -> str:
    file = MODULES / program.folder / "go.mod"
    if not file.exists():
        raise ClusterError(f"KUBERNETES_MINOR={MINOR}: there is no {file.parent.name} in {MODULES}")
    text = file.read_text()
    found = re.search(rf"^(?:require )?\s*{re.escape(program.module)} (v\S+)", text, re.MULTILINE)
    version = found.group(1) if found else "v1"
    return f"{version}-{_source_digest(program)}" if program.package == "." else version


def _source_digest(program: Program) -> str:
    """Of a program whose source is here, so that a changed one is built again."""
    return hashlib.sha256((MODULES / program.folder / "main.go").read_bytes()).hexdigest()[:8]


def _require_go() -> None:
    if shutil.which("go") is None:
        raise ClusterError(
            "Go is not installed: get Go 1.21 or newer from https://go.dev/dl (it fetches the rest itself)"
        )
    version = subprocess.run(["go", "env", "GOVERSION"], check=False, capture_output=True, text=True).stdout.strip()
    found = re.match(r"go1\.(\d+)", version)
    if found and int(found.group(1)) < 21:
        raise ClusterError(f"{version} is too old to fetch the toolchain these programs need: install Go 1.21 or newer")
