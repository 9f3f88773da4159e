"""Debian's Linux as a hypervisor in a guest (L1): its initramfs is that of an emulated host.

The shell on its console has Python and pyvmm, as the emulated host has them.
"""

from __future__ import annotations

import io
from pathlib import Path

from pyvmm.host.parts import initrd, kernel, root
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.progress import Progress

# It replaces the host's own first program.  /usr is the disk /dev/vda, a read-only erofs.
INIT = b"""#!/busybox sh
b=/busybox
$b mkdir -p /proc /sys /dev /usr /etc /tmp /run/pyvmm
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module.ko"; done </modules/order
while [ ! -b /dev/vda ]; do $b usleep 10000; done
$b mount -t erofs -o ro /dev/vda /usr
$b ln -s usr/bin usr/sbin usr/lib /
$b ln -s /proc/self/fd /dev/fd
$b mkdir -p /dev/pts
$b mount -t devpts devpts /dev/pts
$b mv /payload/lib /run/pyvmm/lib
echo "root:x:0:0:root:/:/bin/sh" >/etc/passwd
echo "root:x:0:" >/etc/group
export HOME=/tmp PATH=/usr/bin:/usr/sbin TMPDIR=/tmp LANG=C.UTF-8 OPENSSL_armcap=0
$b dmesg -n 1
exec $b setsid -c sh </dev/ttyS0 >/dev/ttyS0 2>&1
"""


def make(version: str, path: Path) -> Path:
    """Write the initramfs for a Debian kernel, and return the disk with /usr."""
    progress = Progress()
    initrd.write(path, kernel.find(version, progress), progress)
    override = io.BytesIO()
    archive = CpioWriter(override)
    archive.file("init", INIT, 0o755)
    archive.close()
    with path.open("ab") as file:  # the kernel unpacks one archive after the other
        file.write(bytes(-file.tell() % 4) + override.getvalue())
    return root.image(progress)
