# With the Debian package installed, the host's xenstore is the daemon if the package is not enabled, if it is
# disabled again, and if the stub domain cannot be built.
# nested-xen: --server none --package --timeout 400
. /lib/nested.sh
# What a lack of memory does: package-memory.sh. Each start of the daemon stands for a boot; the one
# before is killed, since a daemon keeps nothing that the next one would need here.

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
debian_host
cp /etc/default/xen /run/default.xen
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb

step "enabled, but xl cannot build the stub domain"
check "xenstore-stubdom enable --with-xl" run xenstore-stubdom enable --with-xl
cp /etc/xen/xenstore-stubdom.cfg /run/xenstore-stubdom.cfg
sed -i "s|^kernel = .*|kernel = '/guest/initramfs'|" /etc/xen/xenstore-stubdom.cfg
boot "no image of a kernel" oxenstored
cat /run/boot.log
check "the reason is given" grep -q "the stub domain could not be built (start-with-xl: status 1); starting" /run/boot.log
equal "what stood in for the xenstore is gone" "" "$(pidof xenstore-socket)"
equal "nothing of the attempt is left" "Domain-0" "$(xl list | awk 'NR > 1 { print $1 }')"
check "status" run xenstore-stubdom status
check "it names the daemon now" said "now:       oxenstored (process "
check "and xl for the next boot" said "next boot: the stub domain, by xl create /etc/xen/xenstore-stubdom.cfg"
rm /etc/xen/xenstore-stubdom.cfg
boot "no configuration" oxenstored
check "the reason is given" grep -q "there is no /etc/xen/xenstore-stubdom.cfg; starting" /run/boot.log
cp /run/xenstore-stubdom.cfg /etc/xen/xenstore-stubdom.cfg

step "enabled, but init-xenstore-domain cannot build the stub domain"
# What it does when it tries: package-no-hap.sh.
check "xenstore-stubdom enable --without-xl" run xenstore-stubdom enable --without-xl
echo 'IMAGE=/nowhere' >>/etc/default/xenstore-stubdom
boot "no image at all" oxenstored
check "the reason is given" grep -q "there is no image /nowhere; starting" /run/boot.log
check "status" run xenstore-stubdom status
check "it names the stub domain for the next boot" said "next boot: the stub domain, by init-xenstore-domain"
sed -i '/^IMAGE=/d' /etc/default/xenstore-stubdom
boot "a xenstore has been there in this boot" oxenstored
reads /run/boot.log "xenstore-socket: dom0's kernel has talked to a xenstore already" \
    "xenstore-stubdom: this takes a reboot, and no client before the xenstore; starting /usr/lib/xen-4.17/bin/oxenstored instead"

step "disabled"
check "xenstore-stubdom disable" run xenstore-stubdom disable
check "status" run xenstore-stubdom status
check "it names the daemon for the next boot" said "next boot: the daemon"
equal "nothing of it is left in the choice" "" "$(diff /etc/default/xen /run/default.xen)"
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
