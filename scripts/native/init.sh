#!/busybox sh
# The arm64 machine's first program: load the modules for its disk, and start the init that the
# kernel's command line names (NATIVE_INIT).
b=/busybox
$b mkdir -p /proc /sys /dev /new
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
	$b insmod "/modules/$module.ko" || echo "cannot load $module"
done </modules/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 500 ]; do
	$b usleep 10000
	tries=$((tries + 1))
done
$b mount -t ext4 /dev/vda /new || echo "cannot mount the disk"
for each in proc sys dev; do
	$b mount -o move /$each /new/$each
done
exec $b switch_root /new $NATIVE_INIT
