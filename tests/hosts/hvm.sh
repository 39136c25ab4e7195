# HVM guests on a real host with the stub domain as its xenstore: hvmloader, QEMU as device model in dom0, SeaBIOS, then OVMF.
# debian-host: --enabled --timeout 5400
. /host/lib.sh

# hvm_guest NAME LINE...
hvm_guest() {
    make_guest "$1" 256
    # Without PCI there are no grant tables in an HVM guest, and the first driver that takes one, xenkbd, ends its kernel.
    sed -i "s/^type=.*/type='hvm'/; s/^kernel=.*/kernel='\/guest\/vmlinuz'/; s/console=hvc0/console=ttyS0/; s/ pci=off//" "/run/guests/$1.cfg"
    name=$1
    shift
    # A guest that panics reboots by itself, again and again.
    printf '%s\n' "serial='pty'" "vnc=0" "nographic=1" "on_reboot='preserve'" "$@" >>"/run/guests/$name.cfg"
}

# follow_serial NAME DOMID: what its serial port says, kept as it comes. `xl console` without a terminal spins.
follow_serial() {
    cat "$(xenstore-read "/local/domain/$2/serial/0/tty")" >"/run/serial.$1" 2>&1 &
}

# alive NAME: it was not shut down, has not crashed, and is not on its way out.
alive() { xl list "$1" | awk 'NR == 2 { print $5 }' | grep -q '^...---$'; }

said_or_over() { grep -aqE "$says" "/run/serial.$1" || ! alive "$1"; }

# up FIRMWARE SECONDS: creates a guest with it, and waits for what it says on the serial port.
up() {
    step "$1"
    hvm_guest "$1" "bios='$1'"
    # It is not waited for by xl's own clock: that is the first line on the serial port.
    check "$1: xl create" timeout 300 xl create -q "/run/guests/$1.cfg"
    domid=$(guest_domid "$1")
    follow_serial "$1" "$domid"
    check "$1: its device model runs" xenstore-exists "/local/domain/0/device-model/$domid/state"
    equal "$1: its device model says so" running "$(xenstore-read "/local/domain/0/device-model/$domid/state")"
    says='guest: ready'
    # Debian's OVMF takes no kernel from outside on Xen: that its firmware comes up and finds nothing to boot is what there is to see.
    [ "$1" = seabios ] || says='BdsDxe|UEFI|Shell'
    wait_for "$2" said_or_over "$1"
    grep -aqE "$says" "/run/serial.$1"
    came=$?
    tr -d '\r' <"/run/serial.$1" | tail -n "$([ $came = 0 ] && echo 5 || echo 60)"
    xl list "$1"
    tail -n 3 "/var/log/xen/qemu-dm-$1.log"
    return $came
}
# As with guest_life, the xl that created it clears away behind it.
gone() {
    check "$1: it is gone" wait_gone "$1"
    refuse "$1: /local/domain/$domid is gone" xenstore-exists "/local/domain/$domid"
    check "$1: no device model is left" wait_for 60 eval "! pgrep -f 'xen-domid $domid '"
}

case $boot in
1)
    stub_domain "first boot"
    # Enabled where systemd did not run.
    check "the guard has come up" guard_runs
    if up seabios 900; then
        pass "seabios: Linux comes up"
        check "seabios: xl shutdown" timeout 300 xl shutdown -F -w seabios
    else
        fail "seabios: Linux does not come up"
        check "seabios: xl destroy" timeout 120 xl destroy seabios
    fi
    gone seabios
    stub_domain "afterwards"
    sound "afterwards"
    # Last: QEMU 7.2 has ended here with an assertion of its own (tcg_handle_interrupt), when OVMF was to be started.
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
