#!/bin/sh
# The first boot: install the packages that were unpacked into the disk, then the others, and make
# the users. The last line tells image.py that all succeeded.
export PATH=/usr/sbin:/usr/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
finish() {
	echo "native-install: $1"
	sync
	mount -o remount,ro /
	echo o >/proc/sysrq-trigger
	sleep 60
}
step() {
	"$@" || finish "failed: $1 $2 $3"
}
mount -t tmpfs -o mode=755 run /run
mount -t devpts devpts /dev/pts 2>/dev/null
ip link set lo up
cd /var/cache/native || finish "no packages"
step dpkg --force-depends --force-unsafe-io --install essential/*.deb
step apt-get -q -y -o Dpkg::Options::=--force-unsafe-io --no-install-recommends install ./*.deb
rm -rf /var/cache/native /install.sh
step useradd -m -s /bin/bash -G kvm alice
step useradd -m -s /bin/bash bob
step systemctl enable systemd-networkd native-agent
finish "done"
