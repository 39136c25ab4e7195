# What scripts/bench runs in dom0: one case against one server, named in /nested/bench.
# nested-xen: --timeout 3600 --dom0-memory 768
. /lib/nested.sh
. /nested/bench # case, rounds, bench_server
chmod +x /nested/bench-client

if [ "$bench_server" = null ]; then
    init-xenstore-domain --kernel /nested/null-responder --memory 8 || exit 1
fi

client() { /nested/bench-client "$bench_server" "$1" "$rounds" "$2" $3; }

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

case $case in
guests)
    # The client in the guest's own file system.
    mkdir -p /run/more
    cp /nested/bench-client /run/more/
    (cd /run/more && echo bench-client | cpio -o -H newc) >/run/more.cpio 2>/dev/null
    cat /guest/initramfs /run/more.cpio >/run/guest-initramfs
    make_guest linux 96 "ramdisk='/run/guest-initramfs'"
    start_guest linux || exit 1
    guest_patience=600
    guest_run linux "/bench-client $bench_server linux $rounds base" || exit 1
    xl destroy linux
    start_test_guests guest
    client dom0 guest guest
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
