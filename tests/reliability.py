"""Real commands are started and harmed: nothing may be lost, nothing wrong may come out.

    python tests/reliability.py [--minutes=20] [--faults=300] [--seed=0] [--jobs=2] [--kind=WORD]

First every command is run undisturbed. Then faults are drawn by a seed, each in a folder of its
own: a command is killed (SIGKILL, SIGTERM) at a random moment, or loses its folder or the other
process that it shares the work with; the disk is full; a file of the run is torn, flipped in one
bit, emptied or lost; all files seem to come from the past or the future. What follows is what a
user does: the same command again. A fault is survived if

- the end is that of the undisturbed commands, byte for byte but for the time that things took; or
- the command refuses what is damaged, in one line that names a file of the run, and status 1;

and if no command ends with a traceback. The table says what was tried, and what was lost.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
Path = pathlib.Path
TRAIN = ("train", "--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5", "--epochs=80")
TRAIN += ("--checkpoint_every=0.1",)
SAME = ("--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5", "--num_masks=3")
AFTER = {  # what is asked of a trained run
    "certify": ("certify", *SAME, "--num_draws=400", "--batch_size=60"),
    "decide": ("certify", *SAME, "--target_radius=0.4"),
    "bursts": ("certify", *SAME, "--burst=2,5"),
    "attack": (
        "attack",
        *SAME,
        "--epsilons=0.5",
        "--steps=3",
        "--num_examples=4",
        "--attack_draws=2",
    ),
}
REPRODUCE = ("reproduce", "--what=table3", "--profile=smoke", "--data_dir=archive")
REPRODUCE += ("--ensembles=mc", "--models=lstm_fcn", "--sigmas=0.4", "--epochs=20")
REPRODUCE += ("--num_draws=50", "--num_examples=3", "--datasets=CBF")
COMMANDS = {"train": TRAIN, **AFTER, "reproduce": REPRODUCE}
LOAD = """
import sys
from selfens_jax import SelfEnsembleClassifier, UserError
try:
    SelfEnsembleClassifier.load(sys.argv[1])
except UserError as error:
    sys.exit(f"error: {error}")
"""
RUN = Path("runs/own/lstm_fcn/mc/sigma=0.5/seed=0")
TIMES = {"time", "seconds", "date", "message", "versions", "files", "crc32"}  # what may differ


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a fault: `survived`, or what was lost, and how to make it again."""

    kind: str
    command: str
    survived: bool
    said: str


def start(folder: Path, words: Sequence[str]) -> subprocess.Popen:
    script, *flags = words
    program = ["-c", LOAD] if script == "load" else [str(ROOT / "experiments" / f"{script}.py")]
    with (folder / ".stderr").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, *program, *flags],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


def run(folder: Path, words: Sequence[str]) -> tuple[int, str]:
    """The status of a finished command, and what it said on standard error."""
    status = start(folder, words).wait(timeout=600)
    return status, (folder / ".stderr").read_text(errors="replace")


def complaint(status: int, said: str) -> str:
    """What is wrong with how a command ended; empty if it ended well or in one plain line."""
    if "Traceback" in said:
        return "a traceback: " + said.strip().splitlines()[-1]
    errors = [line for line in re.split(r"[\r\n]", said) if line.startswith("error: ")]
    if status not in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM):
        return f"status {status}: {said[-200:]}"
    return "no error line" if status == 1 and len(errors) != 1 else ""


def state(folder: Path) -> dict[str, str]:
    """What a folder holds, file by file, without the time that things took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if not path.is_file() or hidden or "checkpoint/" in name or path.suffix == ".html":
            continue
        if path.name == "training_time.json":
            continue
        if path.suffix == ".json":
            found[name] = json.dumps(without_times(json.loads(path.read_text())))
        elif path.suffix in (".tsv", ".csv") and path.name != "history.csv":
            found[name] = table(path)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def table(path: Path) -> str:
    """The rows of a table or log, in order of their first cell, without columns of times."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE))
    if rows[0][0].startswith("{"):  # a log: example, seconds, values, checksum
        return str([rows[0], *sorted([row[0], *row[2:-1]] for row in rows[1:])])
    kept = [i for i, name in enumerate(rows[0]) if name not in TIMES]
    return str([[row[i] for i in kept if i < len(row)] for row in rows])


class Campaign:
    """The undisturbed commands, and what is done to copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, {}
        self.empty, self.trained = folder / "empty", folder / "trained"
        self.finished, self.halfway = folder / "finished", folder / "halfway"
        self.empty.mkdir()
        self.make_data(self.empty)
        self.step("train", self.empty, self.trained, TRAIN)
        self.ends = {"train": state(self.trained)}
        shutil.copytree(self.trained, self.finished)
        for name, words in AFTER.items():
            self.step(name, self.trained, folder / name, words)
            self.ends[name] = state(folder / name)
            status, said = run(self.finished, words)
            assert status == 0, said
        self.step("reproduce", self.empty, folder / "reproduced", REPRODUCE)
        self.ends["reproduce"] = state(folder / "reproduced")
        self.ends["finished"] = state(self.finished)
        self.make_halfway()

    @staticmethod
    def make_data(folder: Path) -> None:
        rng, y = np.random.default_rng(0), np.array(["rest", "walk"])[np.arange(24) % 2]
        X = rng.normal(size=(24, 16)) + 0.8 * (y == "walk")[:, None]
        np.savez(folder / "own.npz", X_train=X[:12], y_train=y[:12], X_test=X[12:], y_test=y[12:])
        archive = folder / "archive" / "CBF"
        archive.mkdir(parents=True)
        for split in ("TRAIN", "TEST"):
            label = rng.permutation(np.arange(12) % 3 + 1)
            series = rng.normal(size=(12, 24)) + label[:, None]
            lines = ["\t".join(map(str, row)) for row in np.column_stack([label, series])]
            (archive / f"CBF_{split}.tsv").write_text("\n".join(lines))

    def step(self, name: str, before: Path, after: Path, words: Sequence[str]) -> None:
        shutil.copytree(before, after)
        began = time.monotonic()
        status, said = run(after, words)
        assert status == 0, said
        self.seconds[name] = time.monotonic() - began

    def make_halfway(self) -> None:
        """A training that was killed when it had saved some states."""
        shutil.copytree(self.empty, self.halfway)
        process = start(self.halfway, TRAIN)
        while process.poll() is None and not saved(self.halfway):
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert saved(self.halfway)

    # Faults. Each returns its command and what went wrong, "" if nothing did.

    def killed(self, folder: Path, rng: random.Random, how: signal.Signals) -> tuple[str, str]:
        name = rng.choice(["train", "train", "certify", "decide", "bursts", "attack", "reproduce"])
        words = COMMANDS[name]
        before = self.empty if name in ("train", "reproduce") else self.trained
        shutil.copytree(before, folder, dirs_exist_ok=True)
        for _ in range(rng.choice([1, 1, 2])):
            process = start(folder, words)
            self.wait(process, name, rng.uniform(0.3, 1))
            process.send_signal(how)
            status = process.wait(timeout=60)
            if wrong := complaint(status, (folder / ".stderr").read_text(errors="replace")):
                return name, wrong
        return name, self.again(folder, name, [words])

    def wait(self, process: subprocess.Popen, name: str, share: float) -> None:
        """Waits for a share of the time that a command takes, or for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=share * self.seconds[name])

    def again(self, folder: Path, end: str, commands: Sequence[Sequence[str]]) -> str:
        """What is wrong after the commands, which must now end as the undisturbed ones did."""
        for words in commands:
            status, said = run(folder, words)
            if status != 0:
                return complaint(status, said) or f"not finished: {said.strip()[-300:]}"
        return difference(state(folder), self.ends[end])

    def full_disk(self, folder: Path, rng: random.Random) -> tuple[str, str]:
        name = rng.choice(["train", "certify", "decide", "bursts", "attack"])
        words = COMMANDS[name]
        before = self.empty if name == "train" else self.trained
        own = sum(p.stat().st_size for p in before.rglob("*") if p.is_file()) // 1024
        room = own + rng.randrange(60, 700 if name == "train" else 200)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(before, folder, dirs_exist_ok=True)
            status, said = run(folder, words)
            if wrong := complaint(status, said):
                return name, wrong
            larger = ["mount", "-o", "remount,size=200m", str(folder)]
            subprocess.run(larger, check=True, capture_output=True)
            shutil.copytree(before / "archive", folder / "archive", dirs_exist_ok=True)
            return name, self.again(folder, name, [words])
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def damaged(self, folder: Path, rng: random.Random) -> tuple[str, str]:
        """A file of a run is harmed, and a command that reads it is called."""
        what = rng.choice(["halfway", "finished", "finished"])
        shutil.copytree(getattr(self, what), folder, dirs_exist_ok=True)
        files = [p for p in (folder / RUN).rglob("*") if p.is_file() and p.suffix != ".png"]
        kinds = collections.defaultdict(list)
        for path in files:
            place = path.relative_to(folder / RUN).parts
            kinds[re.sub(r"[-.].*", "", place[0]) + path.suffix].append(path)
        kind = rng.choice(sorted(kinds))
        path = rng.choice(sorted(kinds[kind]))
        name, log = kind, path.name.startswith(("votes-", "decisions-", "bursts-"))
        how = rng.choice(["torn", "flipped", "flipped", "flipped", "emptied", "lost"])
        commands, end = self.readers(path, folder, what)
        if what == "finished":  # what they wrote is gone, so that they must read what is left
            for result in [p for p in files if made_by(p, commands) and p != path and not log]:
                result.unlink()
        harm(path, how, rng)
        for words in commands:
            status, said = run(folder, words)
            if wrong := complaint(status, said):
                return f"{name}, {how}", wrong
            if status == 1:
                named = str(path.relative_to(folder / RUN).parts[0]) in said or str(RUN) in said
                return f"{name}, {how}", "" if named else f"the file is not named: {said[-300:]}"
        # Harm that changes no content (a date in a .npz), or in a result that nothing reads, stays.
        own = str(path.relative_to(folder))
        found, expected = ({**s, own: ""} for s in (state(folder), self.ends[end]))
        return f"{name}, {how} ({path.name})", difference(found, expected)

    def readers(self, path: Path, folder: Path, what: str) -> tuple[list[Sequence[str]], str]:
        """The commands that read a file, and the state that they are to end with."""
        if what == "halfway":
            return [TRAIN], "train"
        if path.suffix == ".npz" and path.name.startswith("counts-"):
            return [("certify", f"--from_counts={path}")], "finished"
        if path.name == "history.csv":
            return [("load", str(folder / RUN))], "finished"
        return [TRAIN, *AFTER.values()], "finished"

    def lost_process(self, folder: Path, rng: random.Random) -> tuple[str, str]:
        shutil.copytree(self.trained, folder, dirs_exist_ok=True)
        words = AFTER["certify"]
        other = start(folder, (*words, "--num_processes=2", "--process_id=1"))
        first = start(folder, (*words, "--num_processes=2", "--process_id=0", "--wait=1"))
        time.sleep(rng.uniform(0.3, 1) * self.seconds["certify"])
        other.kill()
        other.wait()
        status = first.wait(timeout=120)
        if wrong := complaint(status, (folder / ".stderr").read_text(errors="replace")):
            return "certify", wrong
        status, said = run(folder, words)
        if status != 0:
            return "certify", said[-300:]
        for log in (folder / RUN).glob("votes-*.1.tsv"):
            log.unlink()
        found, expected = state(folder), dict(self.ends["certify"])
        for name in [n for n in expected if "/votes-" in n]:  # which the other's log may share
            found.pop(name, None)
            expected.pop(name)
        return "certify", difference(found, expected)

    def clock(self, folder: Path, rng: random.Random) -> tuple[str, str]:
        """All files come from another year, and a killed command goes on."""
        name = rng.choice(["train", *AFTER])
        words = COMMANDS[name]
        before = self.halfway if name == "train" else self.trained
        shutil.copytree(before, folder, dirs_exist_ok=True)
        process = start(folder, words)
        self.wait(process, name, rng.uniform(0.5, 1))
        process.kill()
        process.wait()
        moment = time.time() + rng.choice([-1, 1]) * rng.uniform(1e6, 6e8)
        for path in folder.rglob("*"):
            os.utime(path, (moment, moment))
        return name, self.again(folder, name, [words])

    def removed(self, folder: Path, rng: random.Random) -> tuple[str, str]:
        """The run is deleted under a command; all begins again."""
        name = rng.choice(["train", *AFTER])
        words = COMMANDS[name]
        shutil.copytree(self.empty if name == "train" else self.trained, folder, dirs_exist_ok=True)
        process = start(folder, words)
        self.wait(process, name, rng.uniform(0.3, 1))
        shutil.rmtree(folder / "runs", ignore_errors=True)
        status = process.wait(timeout=120)
        if wrong := complaint(status, (folder / ".stderr").read_text(errors="replace")):
            return name, wrong
        shutil.rmtree(folder / "runs", ignore_errors=True)
        return name, self.again(folder, name, [TRAIN] if name == "train" else [TRAIN, words])


def saved(folder: Path) -> bool:
    """Whether a training has progress to go on from."""
    progress = folder / RUN / "progress"
    return any(path.name.isdigit() for path in progress.glob("*"))


def made_by(path: Path, commands: Sequence[Sequence[str]]) -> bool:
    """Whether a file is a result that is written at the end, or a log."""
    results = ("certificates-", "votes-", "decisions-", "target-", "bursts-", "attack-", "counts-")
    return len(commands) > 1 and path.name.startswith(results)


def harm(path: Path, how: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "lost":
        path.unlink()
    elif how == "emptied" or not content:
        path.write_bytes(b"")
    elif how == "torn":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """Where two states differ, in a line; empty if nowhere."""
    differ = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    ways = {name: "lacks" if name not in found else "has" for name in differ}
    more = [f"{'another ' * (n in found and n in expected)}{n} ({ways[n]})" for n in differ[:3]]
    return f"{len(differ)} files differ: {', '.join(more)}" if differ else ""


KINDS: dict[str, tuple[int, Callable[..., tuple[str, str]]]] = {  # of every 30 faults, how many
    "SIGKILL": (10, lambda c, f, r: c.killed(f, r, signal.SIGKILL)),
    "SIGTERM": (4, lambda c, f, r: c.killed(f, r, signal.SIGTERM)),
    "disk full": (4, Campaign.full_disk),
    "file damaged": (8, Campaign.damaged),
    "process lost": (1, Campaign.lost_process),
    "clock set": (1, Campaign.clock),
    "folder removed": (2, Campaign.removed),
}


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", name]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False
        if mounted:
            subprocess.run(["umount", name], check=True)
        return mounted


def campaign(
    faults: int, seconds: float, seed: int, jobs: int, only: str, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """Does faults until there are so many, or the time is over."""
    kinds = {name: kind for name, kind in KINDS.items() if only in name}
    if "disk full" in kinds and not can_mount():
        say("no small disk can be mounted here: the disk is never full")
        kinds.pop("disk full")
    weights = [weight for weight, _ in kinds.values()]
    with tempfile.TemporaryDirectory() as name:
        whole = Campaign(Path(name).resolve())
        took = ", ".join(f"{name} {took:.0f} s" for name, took in whole.seconds.items())
        say(f"undisturbed: {took}")
        end = time.monotonic() + seconds

        def one(number: int) -> Outcome | None:
            if time.monotonic() > end:
                return None
            rng = random.Random(f"{seed} {number}")
            kind = rng.choices(list(kinds), weights)[0]
            folder = whole.folder / f"fault-{number}"
            folder.mkdir()
            command, wrong = kinds[kind][1](whole, folder, rng)
            if not wrong:
                shutil.rmtree(folder, ignore_errors=True)
            return Outcome(kind, command, not wrong, f"fault {number} of seed {seed}: {wrong}")

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(one, range(faults)):
                if outcome is not None:
                    yield outcome


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table, in Markdown."""
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    for kind in KINDS:
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        lost = [f"{o.command}: {o.said}" for o in own if not o.survived]
        if own:
            told = "; ".join(lost) or "nothing"
            lines.append(f"| {kind} | {len(own)} | {len(own) - len(lost)} | {told} |")
    total = sum(outcome.survived for outcome in outcomes)
    return "\n".join([*lines, f"| all | {len(outcomes)} | {total} | |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kind", default="", help="only kinds whose name contains this")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    outcomes = []
    for outcome in campaign(
        options.faults, 60 * options.minutes, options.seed, options.jobs, options.kind, say
    ):
        outcomes.append(outcome)
        end = "survived" if outcome.survived else outcome.said
        say(f"{len(outcomes)}. {outcome.kind}, {outcome.command}: {end}")
    print(summary(outcomes))
    return 0 if all(outcome.survived for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
