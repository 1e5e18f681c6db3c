"""Runs the checks and measurements of this bundle: `run.py --phase A|B --out DIR`, with the Python that has torch.

The folder of this file holds all else: programs, wheels, data. Nothing is installed: they are unpacked below DIR. Each
step has its own time limit and its output in DIR/STEP.log; what a step does never stops the others. DIR/report.json is
replaced after each, whole or not at all, and DIR/report.md says the same with tables. Started again with the same DIR, it
goes on with the steps that have not ended by themselves; --again runs all of them once more.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from report import Report  # noqa: E402
from steps import PHASES, Places  # noqa: E402

# Asked in a process of its own: what torch is, and which libraries it has loaded.
PROBE = """
import json, re, torch
maps = open('/proc/self/maps').read()
cxx = re.search(r'(/\\S*libstdc\\+\\+\\.so\\S*)', maps)
there = torch.cuda.is_available()
print(json.dumps(dict(
    torch=torch.__version__, lib=torch.__path__[0] + '/lib', cuda=torch.version.cuda, cxx=cxx and cxx.group(1),
    devices=torch.cuda.device_count(), card=torch.cuda.get_device_name(0) if there else None,
)))
"""


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def fail(text):
    sys.exit(f"error: {text}")


def check_files(manifest):
    """Every file of the bundle, before minutes are spent."""
    for name, (size, digest) in manifest["files"].items():
        path = HERE / name
        if not path.is_file():
            fail(f"'{path}' is missing: copy the whole folder that `make gpu-bundle` made")
        if path.stat().st_size != size or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            fail(f"'{path}' is not as it was made: copy the folder anew")


def check_machine(manifest, options):
    """What this machine is; ends with an error if the programs cannot run here."""
    glibc = os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
    if numbers(glibc) < numbers(manifest["glibc"]):
        fail(f"the glibc of this machine is {glibc}, and the programs need {manifest['glibc']}: make the bundle on a "
             "machine with an older glibc, or run it in a container with a newer one")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not options.own_packages and python != manifest["python"]:
        fail(f"this is Python {python}, and the wheels of the bundle are for {manifest['python']}: run it with python"
             f"{manifest['python']}, or give --own-packages if this one has transformers and PEFT")
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or ["no words"])[-1]
        fail(f"'{sys.executable}' cannot import torch ({last}): run this with the Python that has torch {manifest['torch']}")
    machine = json.loads(probe.stdout.splitlines()[-1])
    if machine["torch"].split("+")[0] != manifest["torch"]:
        fail(f"torch is {machine['torch']} here, and the programs are built for {manifest['torch']}")
    if machine["cxx"]:
        there = re.findall(rb"GLIBCXX_(3\.4\.\d+)", Path(machine["cxx"]).read_bytes())
        newest = max((found.decode() for found in there), key=numbers, default="0")
        if numbers(newest) < numbers(manifest["glibcxx"]):
            fail(f"'{machine['cxx']}' knows GLIBCXX_{newest}, and the programs need GLIBCXX_{manifest['glibcxx']}")
    if machine["devices"] == 0 and not options.cpu:
        fail("torch sees no CUDA device here (give --cpu to try the steps on the CPU)")
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        machine["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        machine["driver"] = None
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return machine | {
        "python": sys.version.split()[0], "glibc": glibc, "processor": processor and processor.group(1),
        "cores": len(os.sched_getaffinity(0)),
    }


def unpack(places, options):
    """Programs and packages in folders of their own, once."""
    done = places.unpacked / "done"
    if done.exists():
        return
    shutil.rmtree(places.unpacked, ignore_errors=True)
    places.packages.mkdir(parents=True)
    with tarfile.open(HERE / "programs.tar.xz") as archive:
        archive.extractall(places.programs, filter="data")
    for wheel in [] if options.own_packages else sorted((HERE / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(places.packages)
    done.touch()


def environment(places, machine, options):
    env = dict(os.environ)
    env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [machine["lib"], env.get("LD_LIBRARY_PATH")]))
    if not options.own_packages:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(places.packages), env.get("PYTHONPATH")]))
    if options.dry_run:
        # The runtime without a GPU has no cuDNN.
        env["TORCH_CUDNN_SDPA_DEPRIORITIZED"] = "1"
    return env | {
        "LN_TUNING_BIN": str(places.programs / "ln-tuning"),
        "LN_TUNING_GPU_CHECK": str(places.programs / "gpu_check"),
        "LN_TUNING_PYTHON": sys.executable,
        "LN_TUNING_DATA": str(places.data),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


# The processes of the steps that run.
RUNNING = set()


def end(process):
    """Ends a step with all that it has started."""
    for number, grace in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(grace)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
    # Children of a step that has ended.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(step, limit, env, places):
    """The row of one step for the report."""
    scratch = places.scratch / step.name
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "tmp").mkdir(parents=True)
    begun = time.monotonic()
    with open(places.log(step.name), "wb") as log:
        try:
            process = subprocess.Popen(
                step.command, cwd=scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=env | step.environment | {"TMPDIR": str(scratch / "tmp")}, start_new_session=True,
            )
            RUNNING.add(process)
        except OSError as error:
            return {"status": "failed", "error": str(error), "seconds": 0.0}
        try:
            code = process.wait(limit)
            status = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            code, status = None, "timed out"
        finally:
            end(process)
            RUNNING.discard(process)
    if not step.keeps:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"status": status, "code": code, "seconds": round(time.monotonic() - begun, 1), "limit": limit}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="for the whole phase (default: 8 for A, 20 for B)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps (default: all)")
    parser.add_argument("--together", action="store_true", help="steps that time nothing run beside each other, before the others")
    parser.add_argument("--again", action="store_true", help="steps that have ended run once more")
    parser.add_argument("--own-packages", action="store_true", help="the transformers and PEFT of this Python, not the wheels")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, with small models: to try the bundle")
    parser.add_argument("--dry-run", action="store_true", help="small models, numbers not judged: under a runtime without a GPU")
    options = parser.parse_args()
    manifest = json.loads((HERE / "manifest.json").read_text())
    check_files(manifest)
    places = Places(HERE / "data", options.out.resolve())
    steps = PHASES[options.phase](places, options)
    unknown = set(options.only or []) - {step.name for step in steps}
    if unknown:
        fail(f"no step {', '.join(sorted(unknown))} in phase {options.phase}, which has " + ", ".join(s.name for s in steps))
    machine = check_machine(manifest, options)
    places.out.mkdir(parents=True, exist_ok=True)
    unpack(places, options)
    title = "dry run" if options.dry_run else "on the CPU" if options.cpu else "on a GPU"
    report = Report(places, {"title": title, "bundle": manifest["commit"], "machine": machine})
    env = environment(places, machine, options)

    def stop(number, _):
        # As `finally` does it for a step that runs: the report has it as not ended.
        for process in list(RUNNING):
            end(process)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    ends = time.monotonic() + 60 * (options.minutes or {"A": 8, "B": 20}[options.phase])
    writing = threading.Lock()

    def take(step):
        left = ends - time.monotonic()
        with writing:
            report.add(options.phase, step, {"status": "not reached" if left < 5 else "started"})
        if left < 5:
            return
        row = run(step, round(min(step.limit, left)), env, places)
        with writing:
            report.add(options.phase, step, row)
            print(f"{step.name:<22}{row['status']:<10} {row['seconds']:6.1f} s", flush=True)

    wanted = [step for step in steps if not options.only or step.name in options.only]
    left = [step for step in wanted if options.again or not report.has_ended(step.name)]
    beside = [step for step in left if options.together and step.untimed]
    threads = [threading.Thread(target=take, args=[step], daemon=True) for step in beside]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in left:
        if step not in beside:
            take(step)
    print(f"written to {places.out / 'report.json'} and report.md")
    sys.exit(0 if report.all_passed([step.name for step in wanted]) else 1)


main()
