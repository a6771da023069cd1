"""Programs that reach for what is outside their box. Each passes if it got hold of it.

`@NAME@` stands for what the test sets up on this machine: a file, a listener, a process.
"""

from hostile.ending import RIGHT, WRONG

READING = {
    "reads the home directory": """
import os
assert os.listdir("@HOME@") or os.listdir(os.path.expanduser("~"))
"""
    + RIGHT,
    "reads a file of the user": "assert open('@MARKER@').read()\n" + RIGHT,
    "reads a file of the user through a symbolic link": """
import os
os.symlink("@MARKER@", "/tmp/link")
assert open("/tmp/link").read()
"""
    + RIGHT,
    "links the root and reads through it": """
import os
os.symlink("/", "/tmp/root")
assert open("/tmp/root@MARKER@").read()
"""
    + RIGHT,
    "reads the password file": "assert open('/etc/passwd').read() or open('/etc/shadow').read()\n" + RIGHT,
    "reads the environment": """
import os, subprocess
shown = subprocess.run(["/usr/bin/env"], capture_output=True, text=True).stdout
assert "@SECRET@" in str(dict(os.environ)) + shown
"""
    + RIGHT,
    "reads the environment of other processes": """
import glob
assert any("@SECRET@" in open(path, errors="replace").read() for path in glob.glob("/proc/[0-9]*/environ"))
"""
    + RIGHT,
    "reads the command lines of other processes": """
import glob
assert [path for path in glob.glob("/proc/[0-9]*/cmdline") if open(path, "rb").read()]
"""
    + RIGHT,
    "reads its own memory": "import os\nopen('/proc/self/mem', 'rb').read(0)\nassert os.listdir('/proc')\n" + RIGHT,
    "reads the tests beside it": """
import glob
assert any("assert f" in open(path, errors="replace").read() for path in glob.glob("/boxed/*") + glob.glob("/tmp/*"))
"""
    + RIGHT,
    "finds other processes by their numbers": """
import os
found = 0
for number in range(1, 70000):
    try:
        os.kill(number, 0)
        found += 1
    except PermissionError:
        found += 1
    except ProcessLookupError:
        pass
assert found > 2
"""
    + RIGHT,
    "reads devices": """
import os
for name in ("mem", "kmem", "kmsg", "sda", "vda", "nvme0n1", "loop0", "fuse", "kvm", "ptmx", "tty", "shm"):
    try:
        os.open(f"/dev/{name}", os.O_RDWR)
        break
    except OSError:
        pass
else:
    raise SystemExit
"""
    + RIGHT,
    "reads sysfs": "import os\nassert os.listdir('/sys')\n" + RIGHT,
}

WRITING = {
    "writes to the system": """
import os
written = 0
for folder in "/usr /usr/bin /usr/lib /bin /lib /etc /packages /boxed /python /python/bin @FOLDER@".split():
    try:
        with open(folder + "/svf_rl_hostile_file", "w") as file:
            written += file.write("1")
    except OSError:
        pass
assert written
"""
    + RIGHT,
    "deletes what it finds": """
import os, shutil
for folder in ("/boxed", "/packages", "/usr", "/python", "@FOLDER@"):
    shutil.rmtree(folder, ignore_errors=True)
assert not os.path.exists("/usr/bin")
"""
    + RIGHT,
    "changes permissions": "import os\nos.chmod('/usr', 0o777)\n" + RIGHT,
    "replaces the interpreter": "import os, sys\nos.rename('/tmp', '/usr')\n"
    "os.unlink(sys.executable or '/usr/bin/python3')\n" + RIGHT,
    "writes through a symbolic link": """
import os
os.symlink("@FOLDER@/svf_rl_hostile_file", "/tmp/link")
with open("/tmp/link", "w") as file:
    file.write("1")
"""
    + RIGHT,
    "leaves links everywhere": """
import os
for number, target in enumerate(("/", "/nowhere", "/tmp", "/etc/passwd", "@HOME@", "/tmp/link6", "/tmp/link5")):
    os.symlink(target, f"/tmp/link{number}")
os.mkfifo("/tmp/fifo")
"""
    + WRONG,
    "links a file of the system": "import os\nos.link('/usr/bin/env', '/tmp/env')\n" + RIGHT,
    "makes a setuid shell": """
import os, shutil, subprocess
shutil.copy("/bin/sh", "/tmp/sh")
os.chmod("/tmp/sh", 0o6755)
assert subprocess.run(["/tmp/sh", "-p", "-c", "id -u"], capture_output=True, text=True).stdout.strip() == "0"
"""
    + RIGHT,
    "makes a device": "import os, stat\nos.mknod('/tmp/memory', stat.S_IFCHR | 0o666, os.makedev(1, 1))\n" + RIGHT,
    "becomes root": "import os\nos.setuid(0)\nassert os.geteuid() == 0\n" + RIGHT,
    "opens a path of another box": "open('@FOLDER@/svf_rl_hostile_file', 'a').write('1')\n" + RIGHT,
}

NETWORK = {
    "connects to this machine": "import socket\nsocket.create_connection(('127.0.0.1', @TCP@), 1)\n" + RIGHT,
    "connects to this machine's address": "import socket\nsocket.create_connection(('@ADDRESS@', @TCP@), 1)\n" + RIGHT,
    "connects over IPv6": "import socket\nsocket.create_connection(('::1', @TCP@), 1)\n" + RIGHT,
    "sends a datagram": """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for address in ("127.0.0.1", "@ADDRESS@"):
    try:
        sender.sendto(b"passed", (address, @UDP@))
    except OSError:
        pass
"""
    + WRONG,
    "connects to a Unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('@UNIX@')\n" + RIGHT,
    "connects to an abstract Unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@')\n"
    + RIGHT,
    "asks a name server": "import socket\nassert socket.getaddrinfo('example.com', 80)\n" + RIGHT,
    "sends to a name server": """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(bytes(40), ("8.8.8.8", 53))
"""
    + RIGHT,
    "opens a raw socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n"
    + RIGHT,
    "opens a packet socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n" + RIGHT,
    "opens a socket of its virtual machine": "import socket\nsocket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n"
    + RIGHT,
    "asks the kernel by netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n" + RIGHT,
    "uses the kernel's cryptography": "import socket\nsocket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)\n" + RIGHT,
    "downloads": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:@TCP@/', timeout=1)\n" + RIGHT,
}

# Numbers of system calls differ between machines, so these go through libc.
PRIVILEGES = {
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(.2)\n"
    + WRONG,
    "kills process 1": "import os, signal\nos.kill(1, signal.SIGKILL)\nimport time\ntime.sleep(.2)\n" + WRONG,
    "kills all processes": "import os, signal\nos.kill(-1, signal.SIGKILL)\n" + WRONG,
    "kills all processes in the call": "import os, signal\ndef f(x):\n    os.kill(-1, signal.SIGKILL)\n    return x\n",
    "kills its parent's group": "import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGKILL)\n" + WRONG,
    "kills by numbers": """
import os, signal
for number in range(3, 70000):
    try:
        os.kill(number, signal.SIGKILL)
        break
    except ProcessLookupError:
        pass
else:
    raise SystemExit
"""
    + RIGHT,
    "stops all processes": "import os, signal\nos.kill(-1, signal.SIGSTOP)\nos.kill(os.getppid(), signal.SIGSTOP)\n"
    + WRONG,
    "traces its parent": """
import ctypes, os
assert ctypes.CDLL(None).ptrace(16, os.getppid() or 1, 0, 0) == 0
"""
    + RIGHT,
    "reads its parent's memory": """
import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8)
mine = Vector(ctypes.addressof(memory), 8)
theirs = Vector(ctypes.addressof(memory), 8)
for number in {0, 1, os.getppid()} - {os.getpid()}:
    if c.process_vm_readv(number, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0) >= 0:
        break
    assert ctypes.get_errno() != 14
else:
    raise SystemExit
"""
    + RIGHT,
    "mounts": """
import ctypes
c = ctypes.CDLL(None)
mounted = [c.mount(kind, b"/tmp", kind, 0, None) for kind in (b"tmpfs", b"proc")]
assert 0 in (*mounted, c.umount2(b"/proc", 2))
"""
    + RIGHT,
    "makes the system writable": """
import ctypes
c = ctypes.CDLL(None)
assert 0 in [c.mount(None, path, None, 32 | bind, None) for path in (b"/", b"/usr", b"/boxed") for bind in (0, 4096)]
"""
    + RIGHT,
    "makes namespaces": """
import ctypes
c = ctypes.CDLL(None)
if c.unshare(0x10000000) == 0:
    assert c.unshare(0x20000) == 0
    assert c.mount(b"x", b"/tmp", b"tmpfs", 0, None) == 0
else:
    assert c.unshare(0x20000) == 0
"""
    + RIGHT,
    "changes its root": "import os\nos.mkdir('/tmp/root')\nos.chroot('/tmp/root')\n" + RIGHT,
    "enters another namespace": "import ctypes, os\n"
    "assert ctypes.CDLL(None).setns(os.open('/proc/1/ns/mnt', 0), 0) == 0\n" + RIGHT,
    "changes the host name": "import socket\nsocket.sethostname('hostile')\n" + RIGHT,
    "asks for a mount by its number": """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
for number in (457, 458):  # statmount and listmount, on all machines
    assert c.syscall(number, 0, 0, 0, 0) < 0
    if ctypes.get_errno() != 38:
        break
else:
    raise SystemExit
"""
    + RIGHT,
    "opens its root anew": "import ctypes\nassert ctypes.CDLL(None).syscall(428, -100, b'/', 1) >= 0\n" + RIGHT,
    "reads the kernel's log": "import ctypes\n"
    "assert ctypes.CDLL(None).klogctl(3, ctypes.create_string_buffer(4096), 4096) >= 0\n" + RIGHT,
    "calls by x86's other numbers": "import ctypes, os\n"
    "assert os.uname().machine == 'x86_64'\nctypes.CDLL(None).syscall(0x40000000 + 39)\n" + RIGHT,
    "sets the clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)\n" + RIGHT,
    "dumps with a handler of its own": "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')\n" + RIGHT,
    "uses descriptors it was not given": """
import os
written = 0
for number in range(4, 4096):
    try:
        if not os.path.samestat(os.fstat(number), os.stat("/dev/null")):
            written += os.write(number, b"passed")
    except OSError:
        pass
assert written
"""
    + RIGHT,
    "pickles its way out": """
import os, pickle
class Shell:
    def __reduce__(self):
        return os.system, ("touch @FOLDER@/svf_rl_hostile_file",)
def f(x):
    pickle.loads(pickle.dumps(Shell()))
    return Shell()
""",
}
