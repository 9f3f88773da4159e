#!/busybox sh
# The emulated host's first program: it loads the modules that the root needs, makes the root, and
# executes the agent.  / is a tmpfs with /usr from a read-only erofs.  The user's own directories
# are mounted beside them when a command arrives (pyvmm/host/inside/files.py).
b=/busybox
$b mkdir -p /proc /sys /dev /new
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
	$b insmod "/modules/$module.ko" || echo "pyvmm-init: cannot load $module"
done </modules/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 500 ]; do
	$b usleep 10000
	tries=$((tries + 1))
done
$b mount -t tmpfs -o mode=755 root /new
cd /new
$b mkdir -p usr etc proc sys dev run/pyvmm run/user run/tmp
$b mount -t erofs -o ro /dev/vda usr || echo "pyvmm-init: cannot mount the root"
$b ln -s usr/bin usr/sbin usr/lib .
echo "root:x:0:0:root:/:/bin/sh" >etc/passwd
echo "root:x:0:" >etc/group
echo "127.0.0.1 localhost" >etc/hosts
$b mv /payload/lib run/pyvmm/lib
$b chmod 1777 run/tmp
$b chmod 755 run/user
$b mount -o move /proc proc
$b mount -o move /sys sys
$b mount -o move /dev dev
$b mkdir -p dev/pts dev/shm
$b mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
$b mount -t tmpfs -o mode=1777 shm dev/shm
# As udev makes them.
$b ln -s /proc/self/fd dev/fd
$b ln -s /proc/self/fd/0 dev/stdin
$b ln -s /proc/self/fd/1 dev/stdout
$b ln -s /proc/self/fd/2 dev/stderr
export HOME=/ PATH=/usr/bin:/usr/sbin PYTHONPATH=/run/pyvmm/lib TMPDIR=/run/tmp LANG=C.UTF-8
# In QEMU the CPU's SHA-256 instructions are half as fast as the code they replace.
export OPENSSL_armcap=0
exec $b switch_root /new /usr/bin/python3 -m pyvmm.host.inside.agent
