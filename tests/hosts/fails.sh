# A start of the store that fails, or hangs, ends in time on a host with systemd, and the journal says why; with the daemon to fall
# back on, the host comes up all the same.
# debian-host: --timeout 2400
. /host/lib.sh

# journal TEXT: the log of xen.service in this boot has it.
journal() { journalctl -b --no-pager -q -o cat -u xen.service | grep -qF -- "$1"; }
start_took() {
    systemctl show -p ActiveEnterTimestampMonotonic -p InactiveExitTimestampMonotonic -p InactiveEnterTimestampMonotonic xen.service |
        awk -F = '{ at[$1] = $2 } END {
            end = at["ActiveEnterTimestampMonotonic"]
            if (end == 0) end = at["InactiveEnterTimestampMonotonic"]
            printf "%d", (end - at["InactiveExitTimestampMonotonic"]) / 1000000 }'
}
# in_time WHAT: it ended by itself, not because systemd's five minutes were over, which says nothing.
in_time() {
    systemctl show -p Result xen.service >/run/result
    refuse "$1: it ended by itself, after $(start_took) s" grep -qx Result=timeout /run/result
}

case $boot in
1)
    check "dpkg -i" run dpkg -i /host/xenstore-stubdom.deb
    check "enable" run xenstore-stubdom enable
    echo 'FALLBACK=no IMAGE=/usr/bin/dpkg' >>/etc/default/xenstore-stubdom
    echo 'XENCONSOLED_ARGS="--log=all"' >>/etc/default/xen
    # Without a store they wait in the kernel for one, whatever store that should have been, and each boot and shutdown waits for
    # them. Debian's xendomains, which does not look whether xen.service has come up, does so for five minutes.
    check "no libvirtd, no xendomains" run systemctl mask libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket \
        xendomains.service
    reboot_host
    ;;
2)
    step "no image, and no daemon to fall back on"
    run journalctl -b --no-pager -o short-monotonic -u xen.service
    equal "xen.service has failed" failed "$(systemctl is-failed xen.service)"
    in_time "no image"
    check "the journal says why" journal "xenstore-stubdom: the stub domain could not be built (init-xenstore-domain: status "
    sed -i 's/^FALLBACK=no.*/IMAGE=\/usr\/bin\/dpkg/' /etc/default/xenstore-stubdom
    reboot_host
    ;;
3)
    step "no image, and the daemon takes its place"
    run journalctl -b --no-pager -o short-monotonic -u xen.service
    daemon_serves "fallback"
    in_time "fallback"
    check "the journal says why" journal "starting $(/usr/lib/xen-common/bin/xen-dir)/bin/"
    sed -i '/^IMAGE=/d' /etc/default/xenstore-stubdom
    # A domain that boots and never answers: a Linux that sleeps for a day before it looks for its root. With rootwait it looks every
    # few milliseconds, and the host has half of its processor left.
    { echo 'IMAGE=/host/guest/kernel'; echo 'OPTIONS="rootdelay=86400 root=/dev/nothing"'; echo 'MEMORY=128 MAXMEM=128'; } \
        >>/etc/default/xenstore-stubdom
    reboot_host
    ;;
4)
    step "a domain that does not answer"
    run journalctl -b --no-pager -o short-monotonic -u xen.service
    in_time "no answer"
    check "the journal says so" journal "given up after"
    check "and what became of it" journal "was built but does not answer"
    equal "xen.service has failed" failed "$(systemctl is-failed xen.service)"
    sed -i '/^IMAGE=/d; /^OPTIONS="rootdelay/d; /^MEMORY=128/d' /etc/default/xenstore-stubdom
    reboot_host
    ;;
5)
    step "put right"
    went_down_in 180
    stub_domain "put right"
    sound "put right"
    finish
    ;;
esac
