# libvirt on a real host whose xenstore is the stub domain, as an administrator uses it: virsh -c xen:///system.
# debian-host: --enabled --timeout 3600
. /host/lib.sh
v() { timeout 120 virsh -q -c xen:///system "$@"; }
virsh_answers() { timeout 60 virsh -c xen:///system version; }
state() { v domstate "$1" 2>&1 | head -n 1; }
lists() { v list | grep -q " $1 "; }
remove() { v destroy "$1" && v undefine "$1"; }
has_state() { [ "$(state "$1")" = "$2" ]; }

libvirt_logs() { run journalctl -b --no-pager -o short-monotonic -u libvirtd.service -u xendomains.service -u xen.service; }

case $boot in
1)
    stub_domain "first boot"
    step "libvirtd"
    run systemctl --no-pager -l status libvirtd.service libvirtd.socket virtxend.socket
    if ! run virsh_answers; then
        # Where libvirt does not know the processor, or for another reason has no use for this Xen, no xenstore helps.
        libvirt_logs
        check "disable" run xenstore-stubdom disable
        touch /var/lib/host-run/compare
        reboot_host
    fi
    pass "version"
    check "list" run v list --all
    step "a PVH guest"
    cat >/root/guest.xml <<'END'
<domain type='xen'>
  <name>virtual</name>
  <memory unit='MiB'>96</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='xenpvh'>xenpvh</type>
    <kernel>/guest/kernel</kernel>
    <initrd>/guest/initramfs</initrd>
    <cmdline>console=hvc0 rdinit=/init loglevel=1 pci=off rcupdate.rcu_expedited=1 ipv6.disable=1 cryptomgr.notests apparmor=0</cmdline>
  </os>
  <devices><console type='pty'><target type='xen' port='0'/></console></devices>
</domain>
END
    check "define" run v define /root/guest.xml
    check "start" run v start virtual
    check "it runs" has_state virtual running
    check "it comes up" wait_for 240 more_ready virtual 1
    equal "it reads its name" virtual "$(guest_run virtual 'xenstore-read name')"
    check "list names it" lists virtual
    step "console"
    timeout 30 script -qc 'virsh -c xen:///system console virtual' /dev/null </dev/null >/run/console.log 2>&1 &
    guest_run virtual 'echo for virsh' >/dev/null
    sleep 5
    check "virsh console is connected" grep -aq 'Connected to domain' /run/console.log
    step "shutdown, domrename, autostart, destroy"
    check "shutdown" run v shutdown virtual
    check "it is off" wait_for 240 has_state virtual 'shut off'
    if run v domrename virtual renamed; then
        pass "domrename"
        check "and back" run v domrename renamed virtual
    elif said "not supported by the connection driver"; then
        skip "domrename: libvirt's Xen driver does not have it"
    else
        fail "domrename"
    fi
    check "autostart" run v autostart virtual
    check "start" run v start virtual
    check "destroy" run v destroy virtual
    check "it is off" wait_for 60 has_state virtual 'shut off'
    sound "with libvirt"
    reboot_host
    ;;
2)
    went_down_in 180
    if [ -e /var/lib/host-run/compare ]; then
        step "with the daemon, to compare"
        daemon_serves "to compare"
        if run virsh_answers; then
            fail "virsh has an answer with the daemon, and had none with the stub domain"
        else
            libvirt_logs
            skip "libvirt: with the daemon as xenstore virsh has no answer here either"
        fi
        finish
    fi
    step "autostart"
    stub_domain "the next boot"
    check "the guest has been started" wait_for 300 has_state virtual running
    has_state virtual running || libvirt_logs
    check "undefine" remove virtual
    finish
    ;;
esac
