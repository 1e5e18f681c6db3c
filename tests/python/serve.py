"""Runs scripts for the tests, each in a process of its own, a fork of this one that has PyTorch, transformers and PEFT.

Importing them takes longer than most of the scripts. The first line that this prints is the path of a socket. A request
is a line with the JSON list of a working directory, a script and its arguments, a connection each; the answer is the
JSON list of the exit status, the standard output and the standard error. The server ends when its standard input is
closed.

`serve.py COMMAND…` runs a command that finds a server in LN_TUNING_PYTHON_SERVER: one for all the tests that it runs.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings

if len(sys.argv) > 1:
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **quiet}
    )
    found = {"LN_TUNING_PYTHON_SERVER": server.stdout.readline().strip()}
    sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **found}).returncode)

# Requests wait until everything is imported.
folder = tempfile.mkdtemp()
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.join(folder, "socket"))
listener.listen(64)
print(listener.getsockname(), flush=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

# A fork would copy every page with an object that the collector looks at.
gc.collect()
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    ready, _, _ = select.select([sys.stdin, listener], [], [])
    if sys.stdin in ready:
        shutil.rmtree(folder)
        sys.exit()
    connection, _ = listener.accept()
    if os.fork() == 0:
        break
    connection.close()

# One request's process, which waits for the script's.
listener.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
directory, *command = json.loads(connection.makefile().readline())
outputs = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
script = os.fork()
if script != 0:
    _, status = os.waitpid(script, 0)
    texts = []
    for output in outputs:
        output.seek(0)
        texts.append(output.read().decode(errors="replace"))
    connection.sendall(json.dumps([os.waitstatus_to_exitcode(status), *texts]).encode())
    os._exit(0)

connection.close()
for number, output in enumerate(outputs, 1):
    os.dup2(output.fileno(), number)
os.chdir(directory)
sys.argv = command
sys.path[0] = os.path.dirname(os.path.abspath(command[0]))
status = 0
try:
    runpy.run_path(command[0], run_name="__main__")
except SystemExit as end:
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
except BaseException:
    traceback.print_exc()
    status = 1
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
# Without taking apart all that was imported, which takes longer than most of the scripts.
os._exit(status & 255)
