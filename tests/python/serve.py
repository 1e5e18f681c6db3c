"""Runs scripts for the tests, each in a process of its own, a fork of this one that has PyTorch, transformers and PEFT.

Importing them takes longer than most of the scripts. The first line that this prints is the path of a socket. A request
is a line with the JSON list of a script and its arguments, a connection each; the answer is the JSON list of the exit
status, the standard output and the standard error. The server ends when its standard input is closed.
"""

import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

folder = tempfile.mkdtemp()
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.join(folder, "socket"))
listener.listen(64)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(listener.getsockname(), flush=True)

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
command = json.loads(connection.makefile().readline())
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
sys.argv = command
runpy.run_path(command[0], run_name="__main__")
