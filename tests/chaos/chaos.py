"""Chaos on a deployed cluster: replicas of the operator killed at random moments, trainers killed and evicted.

Every job must end Complete with the loss of a job that nobody disturbed. The machine must be the cluster's node, for a
SIGKILL of a container's first process comes from outside. The cluster's settings are taken from the environment, as
`make chaos` sets them.
"""

import argparse
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3
import yaml
from faults import SYSTEM, OperatorKiller
from kubernetes import config
from rows import colour_rows, jsonl
from tiny_model import make_tiny_model
from user import BUCKET, Bench, kubectl, secret
from victims import Faults, Victim, run_side_by_side

RESULTS = Path(__file__).with_name("RESULTS.md")


HAND_OVER_SECONDS = 15
UNHEARD_MOST = 3
"""Jobs that nothing is known of, after which no other is started: the cluster or the namespace is gone."""


def say(text: str) -> None:
    """One line with the time since the start."""
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills of the operator (200)")
    parser.add_argument("--trainer-kills", type=int, default=20, help="SIGKILLs of trainers (20)")
    parser.add_argument("--evictions", type=int, default=20, help="evictions of trainers (20)")
    parser.add_argument("--jobs", type=int, default=10, help="least number of jobs (10)")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training (300)")
    parser.add_argument("--parallel", type=int, default=2, help="jobs at a time (2)")
    parser.add_argument("--longest-pause", type=float, default=12.0, help="longest life of an operator, seconds (12)")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of the operator, of which one leads (2)")
    parser.add_argument("--minutes", type=float, default=50.0, help="after so long no further job is started (50)")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (1)")
    parser.add_argument("--write", action="store_true", help=f"put the figures on top of {RESULTS.name}")
    return parser.parse_args()


def prepare() -> Bench:
    """A namespace with keys, and storage with a tiny model and rows."""
    config.load_kube_config()
    storage = boto3.client("s3")
    if BUCKET not in [bucket["Name"] for bucket in storage.list_buckets()["Buckets"]]:
        storage.create_bucket(Bucket=BUCKET)
    with TemporaryDirectory() as folder:
        for path in sorted(make_tiny_model(Path(folder)).iterdir()):
            storage.upload_file(str(path), BUCKET, f"tiny-model/{path.name}")
    storage.put_object(Bucket=BUCKET, Key="colours.jsonl", Body=jsonl(colour_rows(300)).encode())
    namespace = f"ftj-chaos-{uuid.uuid4().hex[:6]}"
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        secret(namespace, "s3", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]),
    ]
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    return Bench(namespace, storage)


def tell(victim: Victim) -> None:
    """What became of a job."""
    loss = victim.result.eval_loss if victim.result else "none"
    verdict = "; ".join(victim.problems) or "as it must be"
    done = f"{victim.kills} kills, {victim.evictions} evictions, {victim.status.get('runs', 0)} runs"
    say(f"{victim.name}: {done}, {victim.seconds:.0f} s, held-out loss {loss}: {verdict}")


def disturb(bench: Bench, asked: argparse.Namespace) -> tuple[list[Victim], OperatorKiller]:
    """Jobs until every kill is done, and at least as many as were asked for, and the operator's killer."""
    over = threading.Event()
    killer = OperatorKiller(asked.seed, asked.kills, asked.longest_pause, asked.replicas, over)
    deck = Faults(asked.seed + 1, asked.trainer_kills, asked.evictions, asked.jobs, asked.steps)
    count = unheard = 0

    def make() -> Victim | None:
        if unheard >= UNHEARD_MOST:
            return None
        nonlocal count
        late = time.monotonic() - BEGAN > asked.minutes * 60
        if late or (count >= asked.jobs and killer.done >= asked.kills and not deck.left):
            return None
        count += 1
        say(f"job {count} starts; the operator was killed {killer.done} times so far")
        return Victim(bench, f"victim-{count}", asked.steps, deck.deal())

    def end(victim: Victim) -> None:
        nonlocal unheard
        unheard += not victim.status
        deck.take_back(victim)
        tell(victim)

    if asked.kills:
        killer.start()
    try:
        lived = run_side_by_side(asked.parallel, make, end)
    finally:
        over.set()
    return lived, killer


def scale(replicas: int) -> None:
    """So many replicas of the operator, all ready."""
    names = ("-n", SYSTEM, "-l", "app.kubernetes.io/component=operator")
    kubectl("scale", "deployment", *names, f"--replicas={replicas}")
    kubectl("rollout", "status", "deployment", *names, "--timeout=120s")


def describe(seconds: list[float]) -> str:
    """How long nobody led after the death of a leader."""
    found = sorted(seconds)
    return f"{len(found)}; median {found[len(found) // 2]:.1f}, longest {found[-1]:.1f}" if found else "none"


def compare(lived: list[Victim], whole: Victim, killer: OperatorKiller) -> list[str]:
    """What is wrong, in sentences."""
    slow = [seconds for seconds in killer.hand_overs if seconds > HAND_OVER_SECONDS]
    wrong = [f"{seconds:.1f} s without a leader, {HAND_OVER_SECONDS} s are allowed" for seconds in slow]
    wrong += [f"{one.name}: {problem}" for one in [whole, *lived] for problem in one.problems]
    other = [one for one in lived if one.result and one.result != whole.result]
    return wrong + [f"{one.name}: {one.result} instead of {whole.result}" for one in other]


def table(
    asked: argparse.Namespace, lived: list[Victim], whole: Victim, killer: OperatorKiller, wrong: list[str]
) -> str:
    """The figures of a run as a section of the results."""
    results = [one.result for one in lived if one.result]
    same = sum(one == whole.result for one in results)
    faults = f"--kills {asked.kills} --trainer-kills {asked.trainer_kills} --evictions {asked.evictions}"
    size = f"--jobs {asked.jobs} --parallel {asked.parallel} --steps {asked.steps} --minutes {asked.minutes:g}"
    pace = f"--replicas {asked.replicas} --longest-pause {asked.longest_pause:g} --seed {asked.seed}"
    rows = {
        "command": f"`chaos.py {faults} {size} {pace}`",
        "duration": f"{(time.monotonic() - BEGAN) / 60:.1f} minutes",
        "kills of the operator": f"{killer.done} ({killer.by_process} SIGKILL, {killer.by_pod} pods deleted by force)",
        "replicas of the operator": asked.replicas,
        "deaths of a leader while a standby was ready, and seconds until there was one again": describe(
            killer.hand_overs
        ),
        "the same while none was ready yet": describe(killer.restarts),
        "SIGKILLs of trainers": sum(one.kills for one in lived),
        "evictions of trainers": sum(one.evictions for one in lived),
        "evictions counted as preemptions": sum(one.status.get("preemptions", 0) for one in lived),
        "jobs": f"{len(lived)}, {asked.parallel} at a time, {asked.steps} steps each",
        "runs": sum(one.status.get("runs", 0) for one in lived),
        "jobs Complete": sum(one.status.get("phase") == "Succeeded" for one in lived),
        "jobs with the losses and, bit for bit, the weights of the undisturbed one": same,
        "held-out loss of the undisturbed job": whole.result.eval_loss if whole.result else "none",
        "held-out losses of the others": ", ".join(sorted({str(one.eval_loss) for one in results})) or "none",
        "broken promises": len(wrong),
    }
    lines = [f"## {time.strftime('%Y-%m-%d')}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([*lines, *([""] if wrong else []), *(f"- {one}" for one in wrong)]) + "\n"


def write(section: str) -> None:
    """Put a section above the earlier ones."""
    head, mark, earlier = RESULTS.read_text(encoding="utf-8").partition("\n## ")
    RESULTS.write_text(f"{head.rstrip()}\n\n{section}{mark}{earlier}", encoding="utf-8")


def main() -> int:
    """0 when no promise was broken."""
    asked = arguments()
    bench = prepare()
    scale(asked.replicas)
    say(f"namespace {bench.namespace}; a job that nobody disturbs")
    whole = Victim(bench, "whole", asked.steps, [])
    whole.live()
    tell(whole)
    lived, killer = disturb(bench, asked)
    wrong = compare(lived, whole, killer)
    scale(1)
    section = table(asked, lived, whole, killer, wrong)
    print(section)
    if asked.write:
        write(section)
    if not wrong:
        kubectl("delete", "namespace", bench.namespace, "--wait=false")
    return 1 if wrong else 0


BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
