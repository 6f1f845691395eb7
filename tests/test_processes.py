"""Trainings of several processes under torchrun: equal to one process, resumed to the bit, ended by one message.

Every test starts real processes. gloo on CPUs serves two or three of them; on GPUs the same code runs with NCCL.
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import unused_port
from evaluate_support import aligned_data, write_pictures
from processes_program import evaluate_everything
from training_support import (
    ROOT,
    TINY,
    differences,
    environment,
    last_state,
    records,
    train,
    tree,
    untrained_run,
    write_unaligned,
)

PICTURES = 5  # with two processes, the third step of an epoch has one picture
EPOCHS, STEPS = 3, 3
MEASURED = {"fid", "kid", "lpips_all_pairs", "lpips_input"}
LIMIT = 300  # seconds of one torchrun command; a test that hangs fails


class Ended(NamedTuple):
    """What a torchrun command left: exit code, stdout and stderr of all processes together."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def ours(self) -> str:
        """stderr without torchrun's own lines, which begin with its report of the first failure."""
        return re.split(r"^[EW]\d{4} .*", self.err, maxsplit=1, flags=re.M)[0]


def torchrun(
    *words: object, processes: int = 2, restarts: int = 0, nodes: Iterable[str] = ("--standalone",)
) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", *nodes, "--nproc-per-node", str(processes)]
    return [*launcher, "--max-restarts", str(restarts), *map(str, words)]


def run(*words: object, processes: int = 2, restarts: int = 0) -> Ended:
    done = subprocess.run(
        torchrun(*words, processes=processes, restarts=restarts),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def flags(data: Path, runs: Path, *more: object) -> list[object]:
    return [
        "--dataroot", data, "--name", "r", "--checkpoints_dir", runs, *TINY, "--n_epochs", EPOCHS,
        "--model", "cycle_gan", "--norm", "nc_ms", "--dropout", "--pool_size", "3", "--save_step_freq", "2", *more,
    ]  # fmt: skip


def program(fault: str) -> list[object]:
    return ["tests/processes_program.py", "train", fault]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unaligned(tmp_path_factory.mktemp("data") / "u", PICTURES)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The run of two processes that nothing disturbs, and what they printed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    ended = run("train.py", *flags(data, runs))
    assert ended.code == 0, ended.err
    return runs / "r", ended


def test_several_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Weights after four steps of Adam in float64; in the third step one process has no picture."""
    ended = run("tests/processes_program.py", "compare", tmp_path / "found.json", 4)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 12
    for name, difference in found.items():
        assert difference["to one process"] < 1e-9, name
        assert difference["losses"] < 1e-12, name
        assert difference["between processes"] == 0, name


def test_the_first_process_writes_and_speaks(undisturbed: tuple[Path, Ended]) -> None:
    run_folder, ended = undisturbed
    assert (
        ended.out.count("processes  2, global batch 2 x 1 = 2; learning rate 0.0002, not scaled (--scale_lr)")
        == 1
    )
    assert ended.out.count(f"done: {EPOCHS * STEPS} steps") == 1
    assert len([line for line in ended.err.splitlines() if line.startswith("epoch ")]) == EPOCHS * STEPS
    assert [line["step"] for line in records(run_folder) if line["kind"] == "train"] == list(range(1, 10))
    assert not (run_folder / "run.log").exists()
    assert last_state(run_folder)["position"] == {"epoch": 4, "batches": 0, "step": 9, "best": None}


def test_a_killed_process_is_restarted_and_nothing_is_lost(
    data: Path, tmp_path: Path, undisturbed: tuple[Path, Ended]
) -> None:
    ended = run(*program("kill,1,5"), *flags(data, tmp_path), restarts=1)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert_as_undisturbed(tmp_path / "r", undisturbed)


def assert_as_undisturbed(run_folder: Path, undisturbed: tuple[Path, Ended]) -> None:
    assert list(differences(last_state(run_folder), last_state(undisturbed[0]))) == []
    assert [line for line in records(run_folder) if line["kind"] != "event"] == records(undisturbed[0])


def test_a_signal_to_one_stops_all_and_one_process_goes_on(data: Path, tmp_path: Path) -> None:
    """And then two again, and three."""
    ended = run(*program("term,1,2"), *flags(data, tmp_path, "--deterministic"))
    assert ended.code == 1
    assert ended.out.count("stopped at step 2; saved. To resume:") == 1
    assert ended.ours.count("\n") == 2, ended.ours  # two lines of losses
    assert re.search(r"exitcode\s*: 143", ended.err)
    assert last_state(tmp_path / "r")["position"] == {"epoch": 1, "batches": 2, "step": 2, "best": None}

    again = ["--name", "r", "--checkpoints_dir", tmp_path, "--continue_train", "--n_epochs"]
    alone = train(*again, 1)
    assert alone.code == 0, alone.err
    assert alone.err.count("warning: ") == 1 and "processes 2 -> 1" in alone.err
    assert last_state(tmp_path / "r")["position"]["step"] == 3  # one of the five pictures was left

    for count, steps, change in ((2, 3 + 3, "processes 1 -> 2"), (3, 6 + 2, "processes 2 -> 3")):
        ended = run("train.py", *again, count, processes=count)
        assert ended.code == 0, ended.err
        assert ended.err.count("warning: ") == 1 and change in ended.err
        assert last_state(tmp_path / "r")["position"]["step"] == steps


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("picture,1,4", "error: p1.png: is damaged (remove it)"),
        ("nan,1,4", "error: training: loss "),
        pytest.param("memory,1,4", "error: memory: out of memory at step 4", marks=pytest.mark.slow),
        pytest.param("bug,0,4", "error: internal error: KeyError: 'a bug'", marks=pytest.mark.slow),
        pytest.param("disk,0,9", "error: checkpoint: no space left on the device", marks=pytest.mark.slow),
    ],
)
def test_one_message_of_the_one_that_fails(fault: str, message: str, data: Path, tmp_path: Path) -> None:
    ended = run(*program(fault), *flags(data, tmp_path))
    assert ended.code == 1
    [line] = ended.errors
    assert line.startswith(message)
    assert "Traceback" not in ended.ours
    assert re.search(rf"Root Cause.*?rank\s*: {fault.split(',')[1]}", ended.err, re.S)


@pytest.mark.slow  # it measures time, and is for a machine that does nothing else
@pytest.mark.parametrize(
    "fault", ["picture,1,4", "nan,1,4", "memory,1,4", "bug,0,4", "disk,0,9", "term,1,2", "kill,1,5"]
)
def test_all_end_within_ten_seconds(
    fault: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELL_FAULT", str(tmp_path / "fault"))
    assert run(*program(fault), *flags(data, tmp_path)).code == 1
    seconds = time.time() - float((tmp_path / "fault").read_text())
    print(f"{fault}: {seconds:.1f} s")
    assert seconds < 10


def test_bad_pictures_are_skipped_with_one_warning(data: Path, tmp_path: Path) -> None:
    """Three processes and, at times, fewer pictures than these."""
    root = write_unaligned(tmp_path / "u", 4)
    ended = run(*program("spoil,1,1"), *flags(root, tmp_path, "--skip_bad", "--n_epochs", 2), processes=3)
    assert ended.code == 0, ended.err
    assert last_state(tmp_path / "r")["position"]["step"] == 4
    assert ended.err.count("warning: ") == 1 and "a neighbour is taken instead" in ended.err
    skipped = (tmp_path / "r" / "run.log").read_text().splitlines()
    assert len(skipped) >= 3 and all("skipped" in line for line in skipped)


def test_a_run_that_exists_is_refused_by_a_restart_too(data: Path, tmp_path: Path) -> None:
    assert train(*flags(data, tmp_path, "--n_epochs", 1)).code == 0
    before = tree(tmp_path)
    ended = run("train.py", *flags(data, tmp_path, "--n_epochs", 2), restarts=1)
    assert ended.code == 1
    assert [("this run exists already" in line) for line in ended.errors] == [True, True]
    assert tree(tmp_path) == before


def test_evaluation_and_translation_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures to the bit, metrics to 1e-9; validation batch norm included: pix2pix has it by default."""
    monkeypatch.setenv("I2I_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        data = aligned_data(tmp_path / name / "data", 3, 5)
        for number, side in enumerate((48, 48, 64, 48, 48)):
            write_pictures(data / "mixed", 1, number, (side, side)).joinpath("000.png").rename(
                data / "mixed" / f"p{number}.png"
            )
        unpaired = write_unaligned(tmp_path / name / "unpaired", 4, 48)
        untrained_run(
            tmp_path / name / "runs", "--netG", "resnet_6blocks", "--dataroot", unpaired,
            "--crop_size", 48, "--load_size", 48,
        )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluate_everything(tmp_path / "one")
    torch.set_num_threads(threads)
    ended = run("tests/processes_program.py", "evaluate", tmp_path / "two")
    assert ended.code == 0, ended.err
    assert "running statistics averaged" in ended.out
    one, two = tmp_path / "one", tmp_path / "two"
    for place, count in (("out/translated_1", 5), ("out/translated_2", 5), ("runs/r/evaluation", 8)):
        pictures = {path.relative_to(one): path.read_bytes() for path in sorted((one / place).rglob("*.png"))}
        assert len(pictures) == count
        assert pictures == {p.relative_to(two): p.read_bytes() for p in sorted((two / place).rglob("*.png"))}
    rows, expected = (
        json.loads((folder / "out" / "report" / "report.json").read_text())["rows"] for folder in (two, one)
    )
    assert len(expected) == len(rows) == 2
    for row, wanted in zip(rows, expected, strict=True):
        assert row["values"].keys() == wanted["values"].keys() == MEASURED
        for name, value in wanted["values"].items():
            assert row["values"][name] == pytest.approx(value, rel=1e-9), name
    assert ended.out.count("5 pictures translated") == 2
    [metrics] = [line for line in records(two / "out" / "trained") if line["kind"] == "metrics"]
    assert {"val_l1", "fid", "kid", "lpips", "psnr"} <= metrics["metrics"].keys()


DOCS = (ROOT / "docs" / "processes.md").read_text(encoding="utf-8")


def test_two_machines_train_as_one_does(data: Path, tmp_path: Path, undisturbed: tuple[Path, Ended]) -> None:
    """The documented command, twice on this machine, with one process each."""
    [documented] = re.findall(r"^torchrun (--nnodes 2 .*?) train.py ", DOCS, re.M)
    launcher = documented.replace("HOST:29500", f"localhost:{unused_port()}").replace("-node 4", "-node 1")
    command = [sys.executable, "-m", "torch.distributed.run", *launcher.split(), "train.py"]
    words = [*command, *map(str, flags(data, tmp_path))]
    machines = [
        subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [machine.communicate(timeout=LIMIT)[0].decode() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert sum(output.count(f"done: {EPOCHS * STEPS} steps") for output in outputs) == 1
    assert_as_undisturbed(tmp_path / "r", undisturbed)


def test_a_slurm_job_is_requeued_and_resumes(
    data: Path, tmp_path: Path, undisturbed: tuple[Path, Ended]
) -> None:
    """The documented script, with stand-ins for Slurm's commands; the time is up after the first lines of losses."""
    [script] = re.findall(r"```bash\n(.*?)```", DOCS, re.S)
    where = " ".join(map(shlex.quote, map(str, flags(data, tmp_path / "checkpoints"))))
    script = script.replace("-node 4", "-node 2").replace('"$head:29500"', f'"$head:{unused_port()}"')
    script = script.replace("train.py --dataroot FOLDER --name NAME", f"{ROOT}/train.py {where}")
    script = script.replace("checkpoints/NAME", "checkpoints/r")
    (tmp_path / "job.sh").write_text(script)
    tools = {
        "srun": 'echo $$ > step.pid; exec "$@"',
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
        "scancel": 'echo "$@" > cancelled; kill -TERM "$(cat step.pid)"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, body in tools.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    env = environment() | slurm | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "job.sh"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    job = start()
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("epoch ") and "step 2 " in line:
            job.send_signal(signal.SIGUSR1)
            break
    rest = job.communicate(timeout=LIMIT)[0]
    assert "saved. To resume:" in rest, rest
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 7.0\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    again = start()
    output = again.communicate(timeout=LIMIT)[0]
    assert again.returncode == 0, output
    assert "done: 9 steps" in output
    assert_as_undisturbed(tmp_path / "checkpoints" / "r", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_moments(data: Path, tmp_path: Path) -> None:
    """kill -9 of a process, 30 times: while they start, in a step, in a save."""
    epochs, draw = ["--n_epochs", 12], random.Random(12)
    undisturbed = (
        tmp_path / "undisturbed" / "r",
        run("train.py", *flags(data, tmp_path / "undisturbed", *epochs)),
    )
    kills, in_training = 0, 0
    for number in range(5):
        if kills >= 30:
            break
        runs, log = tmp_path / str(number), tmp_path / f"{number}.log"
        with log.open("w") as output:
            words = torchrun("train.py", *flags(data, runs, *epochs), restarts=30)
            job = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=output, stderr=output)
            for _ in range(10):
                steps, wanted, at_start = steps_of(log), draw.randrange(1, 5), draw.random() < 0.3
                moment = time.monotonic() + draw.uniform(0, 8)
                while job.poll() is None and (
                    time.monotonic() < moment if at_start else steps_of(log) < steps + wanted
                ):
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.1))
                listed = subprocess.run(
                    ["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=False
                )
                if workers := [int(pid) for pid in listed.stdout.split()]:
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    kills, in_training = kills + 1, in_training + (not at_start)
            assert job.wait(timeout=LIMIT) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert_as_undisturbed(runs / "r", undisturbed)
    print(f"{kills} kills, {in_training} of them while steps were made")
    assert kills >= 30 and in_training >= 15


def steps_of(log: Path) -> int:
    return log.read_text().count("  step ")
