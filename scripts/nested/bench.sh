# What scripts/bench runs in dom0: one case against one server, named in /nested/bench.
# nested-xen: --timeout 3600 --dom0-memory 768
. /lib/nested.sh
. /nested/bench # case, rounds, bench_server
chmod +x /nested/bench-client

client() { /nested/bench-client "$bench_server" "$1" "$rounds" "$2" $3; }

if [ "$bench_server" = null ]; then
    # The toolstack needs a store to build guests with. It gets another one, which says whom they belong to.
    [ "$case" != guests ] || {
        xenstore-socket >/run/stand-in.log 2>&1 &
        wait_for 20 xenstore-exists / || exit 1
    }
    init-xenstore-domain --kernel /nested/null-responder --memory 8 || exit 1
    [ "$case" != guests ] || {
        xen-init-dom0 && xenconsoled --log=all --log-dir=/var/log/xen/console || exit 1
    }
fi

# introduce NAME: to the null responder, of which the toolstack knows nothing.
introduce() {
    [ "$bench_server" = null ] || return 0
    domid=$(guest_domid "$1")
    # The port that is offered to it; the console's is offered to dom0.
    port=$(lsevtchn "$domid" | sed -n "s/^ *\([0-9]*\): .*nterdomain.* $(server_domid)\(,.*\)\?$/\1/p" | head -n 1)
    [ -n "$port" ] || { lsevtchn "$domid"; exit 1; }
    client dom0 introduce "$domid $port"
}

# The node by which test guests get their orders.
start_orders() { xenstore-write /bench/order none && xenstore-chmod /bench/order r0; }

# start_test_guests NAME...
start_test_guests() {
    start_orders
    for name in "$@"; do
        make_test_guest "$name" role=bench
        xl create -q "/run/guests/$name.cfg" || exit 1
        wait_for 60 eval "guest_log $name | grep -q '^bench: ready'" || { guest_log "$name"; exit 1; }
    done
}

# With the first program that uses the store, a request takes some 3,000 to 6,000 instructions less than with every later one;
# why is not known. So that all figures are of later ones:
/nested/bench-client "$bench_server" dom0 "$rounds" base >/dev/null || exit 1

case $case in
guests)
    # The client in the guest's own file system.
    mkdir -p /run/more
    cp /nested/bench-client /run/more/
    (cd /run/more && echo bench-client | cpio -o -H newc) >/run/more.cpio 2>/dev/null
    cat /guest/initramfs /run/more.cpio >/run/guest-initramfs
    make_guest linux 96 "ramdisk='/run/guest-initramfs'"
    xl create -q /run/guests/linux.cfg || exit 1
    introduce linux
    wait_until_ready linux 1 || { guest_log linux; exit 1; }
    guest_patience=600
    guest_run linux "/bench-client $bench_server linux $rounds base" || exit 1
    if [ "$bench_server" = null ]; then
        make_test_guest guest "role=bench=base-$rounds-empty,flood-$((rounds * 50))"
        xl create -q /run/guests/guest.cfg || exit 1
        introduce guest
        wait_for 60 eval "guest_log guest | grep -q '^bench: ready'" || { guest_log guest; exit 1; }
        client dom0 printed guest
    else
        start_test_guests guest
        client dom0 guest guest
        client dom0 fill
        guest_run linux "/bench-client $bench_server linux $rounds base 20400 nodes" || exit 1
        client dom0 guest "guest 20400 nodes"
    fi
    ;;
crowd)
    names=$(seq 32 | sed 's/^/guest/')
    start_test_guests $names
    client dom0 crowd "$names"
    ;;
update)
    image=/nested/image
    [ "$bench_server" = ours ] || image=$(readlink -f /xen-tools)/$bench_server
    client dom0 update "$image"
    ;;
creation)
    if [ ! -e /nested/creation ]; then
        make_guest created
        /nested/bench-client record /nested/creation xl create -q /run/guests/created.cfg || exit 1
        sed 's/^/record: /' /nested/creation
        xl destroy created
    fi
    client dom0 replay /nested/creation
    ;;
*) client dom0 "$case" ;;
esac
