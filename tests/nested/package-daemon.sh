# With the Debian package installed, the host's xenstore is the daemon if the package is not enabled, if it is
# disabled again, and if the stub domain cannot be built.
# nested-xen: --server none --package --timeout 400
. /lib/nested.sh
# What is real here and what is not: see package.sh; what a lack of memory does: package-memory.sh. Each start of the daemon stands for a boot; the one
# before is killed, since a daemon keeps nothing that the next one would need here.

run() {
    echo "\$ $*"
    "$@" >/run/output.log 2>&1
    result=$?
    sed 's/^/  /' /run/output.log
    return $result
}

said() { grep -qF -- "$1" /run/output.log; }

serves() { xenstore-write /test/alive "$1" && [ "$(xenstore-read /test/alive)" = "$1" ]; }

# boot WHEN DAEMON: the start script brings up this daemon, and no domain.
boot() {
    for name in oxenstored xenstored xenconsoled; do
        # shellcheck disable=SC2046 # one process, or none
        [ -z "$(pidof $name)" ] || kill $(pidof $name)
        wait_for 10 eval "! pidof $name"
    done
    rm -f /run/xenstored/socket /run/xen*.pid
    check "$1: /etc/init.d/xen start" run /etc/init.d/xen start
    cp /run/output.log /run/boot.log
    check "$1: $2 runs" pidof "$2"
    check "$1: the store answers" serves "$1"
    equal "$1: there is no xenstore domain" 0 "$(xl list | grep -c '^Xenstore ')"
}

step "a Debian host"
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /etc/default /etc/xen
touch /var/lib/dpkg/status /var/lib/dpkg/available
cp /usr/share/xen-utils-common/default.xen /etc/default/xen
ln -sf /usr/bin/dash /bin/sh
export PATH="/usr/sbin:/sbin:$PATH"
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb

step "enabled, but the stub domain cannot be built"
check "xenstore-stubdom enable" run xenstore-stubdom enable
echo 'IMAGE=/guest/initramfs' >>/etc/default/xenstore-stubdom
boot "no image of a kernel" oxenstored
cat /run/boot.log
check "the reason is given" grep -q "the stub domain could not be built" /run/boot.log
echo 'IMAGE=/nowhere' >>/etc/default/xenstore-stubdom
boot "no image at all" oxenstored
check "the reason is given" grep -q "there is no image /nowhere; starting" /run/boot.log
check "status" run xenstore-stubdom status
check "it names the daemon now" said "now:       oxenstored (process "
check "and the stub domain for the next boot" said "next boot: the stub domain"
sed -i '/^IMAGE=/d' /etc/default/xenstore-stubdom

step "disabled"
check "xenstore-stubdom disable" run xenstore-stubdom disable
check "status" run xenstore-stubdom status
check "it names the daemon for the next boot" said "next boot: the daemon"
equal "nothing of it is left in the choice" "" "$(diff /etc/default/xen /usr/share/xen-utils-common/default.xen)"
boot "disabled" oxenstored

step "the administrator's own daemon"
daemons=$(/usr/lib/xen-common/bin/xen-dir)/bin
echo "XENSTORED=$daemons/xenstored" >>/etc/default/xen
check "enable" run xenstore-stubdom enable
check "disable" run xenstore-stubdom disable
check "status" run xenstore-stubdom status
check "it names that daemon" said "next boot: the daemon $daemons/xenstored"
check "dpkg -P" /usr/bin/dpkg --force-bad-path -P xenstore-stubdom
boot "removed" xenstored

finish
