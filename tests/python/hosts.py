"""Hosts for tests of many processes, each with a network of its own, and the link between them.

`hosts.py PLAN` runs something on each host, and prints a JSON list with what became of it: `status` (none where it was
still there at the limit), `out`, `err` and `seconds`. Nothing that it started outlives it. PLAN is a JSON object:

    limit    seconds after which everything is killed
    link     null for hosts that are this machine; else how packets travel: `delay` and `jitter` in seconds, `loss` as a
             share of packets, `seed`. While a file `cut` is in the directory of the first host, none does.
    hosts    for each: `torchrun`, its arguments, or `command`; `directory`; `environment`

Host n has the address 10.77.0.n. The link is this program, which reads each packet from a TUN device of one host and
writes it to that of another, since not every kernel has netem. It prints `{"cannot": REASON}` where it may not make a
network, for which it needs root or user namespaces, and /dev/net/tun.
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback

CLONE_NEWUSER, CLONE_NEWNET, PR_SET_CHILD_SUBREAPER = 0x10000000, 0x40000000, 36
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, TUNSETIFF = 0x8914, 0x8916, 0x891C, 0x400454CA
IFF_UP, IFF_TUN, IFF_NO_PI = 1, 1, 0x1000

libc = ctypes.CDLL(None, use_errno=True)


def network(number):
    """Gives this process a network of its own, with one address, and returns the file that its packets come from."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if user else 0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"no network of its own: {os.strerror(error)}")
    if user:
        for name, text in [("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")]:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    with socket.socket() as any_socket:
        for request, text in [(SIOCSIFADDR, f"10.77.0.{number}"), (SIOCSIFNETMASK, "255.255.255.0")]:
            address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
            fcntl.ioctl(any_socket, request, struct.pack("16s24s", b"tun0", address))
        for name in [b"lo", b"tun0"]:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", name, IFF_UP))
    return tun


class Link:
    """Carries packets between hosts by a plan."""

    def __init__(self, plan, devices, directory):
        self.delay, self.jitter, self.loss = plan.get("delay", 0), plan.get("jitter", 0), plan.get("loss", 0)
        self.random = random.Random(plan.get("seed", 0))
        self.devices, self.cut = devices, os.path.join(directory, "cut")
        self.queue, self.count = [], 0

    def carry(self, longest):
        """Waits for packets, for this time at most, and delivers those that are due."""
        if self.queue:
            longest = min(longest, max(0, self.queue[0][0] - time.monotonic()))
        ready, _, _ = select.select(self.devices, [], [], longest)
        cut = os.path.exists(self.cut)
        for device in ready:
            try:
                while True:
                    self.take(os.read(device, 65536), cut)
            except BlockingIOError:
                pass
        while self.queue and self.queue[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(self.queue)
            if not cut:
                os.write(device, packet)

    def take(self, packet, cut):
        # Only version 4; the last byte of the receiver's address is its number.
        lost = self.random.random() < self.loss
        if cut or lost or packet[0] >> 4 != 4 or not 1 <= packet[19] <= len(self.devices):
            return
        self.count += 1
        due = time.monotonic() + self.delay + self.random.random() * self.jitter
        heapq.heappush(self.queue, (due, self.count, self.devices[packet[19] - 1], packet))


class Host:
    """A process in a network of its own, and all that it starts."""

    def __init__(self, number, plan, has_link):
        self.number, self.plan = number, plan
        self.outputs = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self.status = self.seconds = self.device = None
        ours, theirs = socket.socketpair()
        self.begun = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            ours.close()
            self.enter(theirs, has_link)
        theirs.close()
        answer, files, _, _ = socket.recv_fds(ours, 1000, 1)
        if answer != b"ready":
            cannot(answer.decode())
        self.device, self.start = (files[0] if files else None), ours

    def enter(self, parent, has_link):
        try:
            tun = [network(self.number)] if has_link else []
        except OSError as error:
            parent.send(f"{error}".encode())
            os._exit(1)
        socket.send_fds(parent, [b"ready"], tun)
        for file in tun:
            os.close(file)
        # All hosts begin together.
        parent.recv(1)
        status = 1
        try:
            status = self.run()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def run(self):
        for number, output in enumerate(self.outputs, 1):
            os.dup2(output.fileno(), number)
        os.chdir(self.plan["directory"])
        os.environ.update(self.plan.get("environment", {}))
        if "command" in self.plan:
            os.execvp(self.plan["command"][0], self.plan["command"])
        # As bin/torchrun does, but that torch is imported already.
        from torch.distributed.run import main

        sys.argv = ["torchrun", *self.plan["torchrun"]]
        main(self.plan["torchrun"])
        return 0

    def ended(self):
        if self.status is None and self.process:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.status, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.begun
        return self.status is not None

    def answer(self):
        texts = []
        for output in self.outputs:
            output.seek(0)
            texts.append(output.read().decode(errors="replace"))
        return {"status": self.status, "out": texts[0], "err": texts[1], "seconds": self.seconds}


def cannot(reason):
    print(json.dumps({"cannot": reason}))
    sys.stdout.flush()
    kill_descendants()
    os._exit(0)


def kill_descendants():
    """Kills all that this process started; those whose parents ended are its children."""
    while True:
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as file:
                    parents[int(name)] = int(file.read().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
        below, found = {os.getpid()}, True
        while found:
            found = {process for process, parent in parents.items() if parent in below} - below
            below |= found
        for process in below - {os.getpid()}:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.wait()
        except ChildProcessError:
            return


def main(plan):
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    link = plan.get("link")
    hosts = [Host(number, host, link is not None) for number, host in enumerate(plan["hosts"], 1)]
    carrier = Link(link or {}, [host.device for host in hosts if link is not None], plan["hosts"][0]["directory"])
    begun = time.monotonic()
    for host in hosts:
        host.begun = begun
        host.start.send(b".")
    while not all([host.ended() for host in hosts]) and time.monotonic() < begun + plan["limit"]:
        carrier.carry(0.02)
    kill_descendants()
    print(json.dumps([host.answer() for host in hosts]))


main(json.loads(sys.argv[1]))
