# HVM guests on a real host with the stub domain as its xenstore: hvmloader, QEMU as device model in dom0, SeaBIOS, then OVMF.
# debian-host: --enabled --timeout 5400
. /host/lib.sh

# hvm_guest NAME LINE...
hvm_guest() {
    make_guest "$1" 256
    sed -i "s/^type=.*/type='hvm'/; s/^kernel=.*/kernel='\/guest\/vmlinuz'/; s/console=hvc0/console=ttyS0/" "/run/guests/$1.cfg"
    name=$1
    shift
    printf '%s\n' "serial='pty'" "vnc=0" "nographic=1" "$@" >>"/run/guests/$name.cfg"
}

# serial_of NAME: what its serial port says, kept as it comes.
follow_serial() {
    xl console -t serial "$1" </dev/null >"/run/serial.$1" 2>&1 &
}

case $boot in
1)
    stub_domain "first boot"
    for firmware in seabios ovmf; do
        step "$firmware"
        hvm_guest "$firmware" "bios='$firmware'"
        # It is not waited for by xl's own clock: that is Linux's first line on the serial port.
        check "$firmware: xl create" timeout 300 xl create -q "/run/guests/$firmware.cfg"
        domid=$(guest_domid "$firmware")
        follow_serial "$firmware"
        check "$firmware: its device model runs" xenstore-exists "/local/domain/0/device-model/$domid/state"
        equal "$firmware: its device model says so" running "$(xenstore-read "/local/domain/0/device-model/$domid/state")"
        if [ $firmware = seabios ]; then
            check "$firmware: Linux comes up" wait_for 900 grep -aq 'guest: ready' "/run/serial.$firmware"
            tr -d '\r' <"/run/serial.$firmware" | tail -n 5
            check "$firmware: xl shutdown" timeout 300 xl shutdown -F -w "$firmware"
        else
            # OVMF on Xen takes no kernel from outside: that its firmware comes up and finds nothing to boot is what there is to see.
            check "$firmware: the firmware comes up" wait_for 900 grep -aqE 'BdsDxe|UEFI|Shell' "/run/serial.$firmware"
            tr -d '\r' <"/run/serial.$firmware" | tail -n 5
            check "$firmware: xl destroy" timeout 120 xl destroy "$firmware"
        fi
        refuse "$firmware: /local/domain/$domid is gone" xenstore-exists "/local/domain/$domid"
        refuse "$firmware: no device model is left" pgrep -f "xen-domid $domid "
    done
    stub_domain "afterwards"
    sound "afterwards"
    finish
    ;;
esac
