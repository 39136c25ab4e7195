# As hvm.sh, with OVMF in place of SeaBIOS. Without KVM, QEMU 7.2, 10.0 and 11.1 (Debian 12, 13 and unstable) end with an
# assertion ("bql_locked()", in 7.2 by another name) when the firmware is started, and the run with them: tests/hosts/run counts that as skipped.
# debian-host: --enabled --timeout 5400
. /host/lib.sh

case $boot in
1)
    stub_domain "first boot"
    if up ovmf 300; then
        pass "ovmf: the firmware comes up"
    else
        check "ovmf: its domain goes on" alive ovmf
        touch /var/lib/host-run/compare
    fi
    check "ovmf: xl destroy" timeout 120 xl destroy ovmf
    gone ovmf
    sound "after OVMF"
    [ -e /var/lib/host-run/compare ] || finish
    check "disable" run xenstore-stubdom disable
    reboot_host
    ;;
2)
    step "with the daemon, to compare"
    daemon_serves "to compare"
    if up ovmf 300; then
        fail "OVMF comes up with the daemon, and did not with the stub domain"
    else
        skip "ovmf: with the daemon as xenstore this firmware says nothing here either"
    fi
    finish
    ;;
esac
